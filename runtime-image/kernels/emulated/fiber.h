// Changing from one stack to another.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

struct Fiber {
    void* stack;
};

// Keeps what a called function must keep, and goes on where `to` was left.
extern "C" void emulated_switch(void** from, void* to);
asm(".text\n"
    ".hidden emulated_switch\n"
    ".globl emulated_switch\n"
    ".type emulated_switch, @function\n"
    "emulated_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size emulated_switch, . - emulated_switch\n");

inline void switch_fiber(Fiber& from, Fiber& to) {
    emulated_switch(&from.stack, to.stack);
}

inline void start_fiber(Fiber& fiber, unsigned char* stack, size_t bytes, void (*run)()) {
    // As after a call: the stack is 8 off a multiple of 16 when the function begins.
    auto** top = reinterpret_cast<void**>(stack + bytes) - 2;
    *top = reinterpret_cast<void*>(run);
    for (int index = 0; index < 6; index++) {
        *--top = nullptr;
    }
    fiber.stack = top;
}

#else

#include <ucontext.h>

struct Fiber {
    ucontext_t context;
};

inline void switch_fiber(Fiber& from, Fiber& to) {
    swapcontext(&from.context, &to.context);
}

inline void start_fiber(Fiber& fiber, unsigned char* stack, size_t bytes, void (*run)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run, 0);
}

#endif
