// Runs kernels by name: blocks one after the other, threads as fibers.
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <mutex>
#include <vector>

#include <sys/mman.h>

#include "cuda.h"
#include "fiber.h"

namespace emulated {

thread_local Now now;

namespace {

constexpr size_t MOST_SHARED = 99 * 1024;
constexpr size_t STACK = 64 * 1024;
constexpr size_t GUARD = 4096;

enum class State { ready, in_warp, in_block, done };

struct Copy {
    uint4* to;
    const uint4* from;
    size_t group;
};

struct Thread {
    Fiber fiber;
    State state;
    void* mine;
    // Under way, in the order of their groups.
    std::vector<Copy> copies;
    // Groups that were ended.
    size_t groups;
};

struct Warp {
    const char* kind;
    int arrived;
};

struct Machine {
    unsigned char* stacks = nullptr;
    unsigned char* shared_end = nullptr;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Fiber scheduler;
    uint32_t running = 0;
    uint32_t in_block = 0;
    uint32_t done = 0;
    Invoke invoke = nullptr;
    void** arguments = nullptr;
    bool reverse = false;
    bool launching = false;
    bool failed = false;
    sigjmp_buf away;
    char error[512] = "";
};

// Reached without a call, since everything here asks for it all the time.
thread_local Machine* machine __attribute__((tls_model("initial-exec"))) = nullptr;

Kernel* kernels = nullptr;

void tell(const char* form, ...) {
    va_list values;
    va_start(values, form);
    std::vsnprintf(machine->error, sizeof machine->error, form, values);
    va_end(values);
}

void back() {
    switch_fiber(machine->threads[machine->running].fiber, machine->scheduler);
}

void run_thread() {
    machine->invoke(machine->arguments);
    if (!machine->threads[machine->running].copies.empty()) {
        fault("it ends while copies are under way");
    }
    machine->threads[machine->running].state = State::done;
    machine->done++;
    back();
}

// Every mapping ends with a page that may not be touched.
unsigned char* map(size_t bytes) {
    void* memory = mmap(nullptr, bytes + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return nullptr;
    }
    auto* start = static_cast<unsigned char*>(memory);
    mprotect(start + bytes, GUARD, PROT_NONE);
    return start;
}

size_t whole_pages(size_t bytes) {
    return (bytes + GUARD - 1) / GUARD * GUARD;
}

// What was done with these signals before.
struct sigaction before_touched, before_trapped;

void wrong(int signal, siginfo_t* info, void* context) {
    const bool trapped = signal == SIGILL;
    if (machine != nullptr && machine->launching) {
        tell("block %u %u %u, thread %u %s", now.block.x, now.block.y, now.block.z, machine->running,
             trapped ? "reads or writes at once what does not lie so" : "touches memory that is not its own");
        siglongjmp(machine->away, 1);
    }
    const struct sigaction& before = trapped ? before_trapped : before_touched;
    if (before.sa_flags & SA_SIGINFO && before.sa_sigaction != nullptr) {
        before.sa_sigaction(signal, info, context);
        return;
    }
    sigaction(signal, &before, nullptr);
}

void watch_memory() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = wrong;
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before_touched);
        // Where the compiler finds an address that is no multiple of the size, or an index beyond an array.
        sigaction(SIGILL, &action, &before_trapped);
    });
}

// What a thread of the host has that launches; it goes with the thread.
struct Holder {
    std::unique_ptr<Machine> own;

    ~Holder() {
        if (own != nullptr) {
            munmap(own->stacks, STACK * 1024 + GUARD);
            munmap(own->shared_end - whole_pages(MOST_SHARED), whole_pages(MOST_SHARED) + GUARD);
        }
        machine = nullptr;
    }
};

thread_local Holder holder;

void make_machine() {
    if (machine == nullptr) {
        holder.own = std::make_unique<Machine>();
        machine = holder.own.get();
        machine->stacks = map(STACK * 1024);
        machine->shared_end = map(whole_pages(MOST_SHARED)) + whole_pages(MOST_SHARED);
    }
}

void prepare(uint32_t threads) {
    machine->threads.resize(threads);
    machine->warps.resize(threads / 32);
}

// Runs what is ready in one warp until nothing is; true where anything ran.
bool run_warp(uint32_t warp) {
    bool any = false, again = true;
    while (again && !machine->failed) {
        again = false;
        for (uint32_t index = 0; index < 32 && !machine->failed; index++) {
            const uint32_t lane = machine->reverse ? 31 - index : index;
            Thread& thread = machine->threads[warp * 32 + lane];
            if (thread.state == State::ready) {
                machine->running = warp * 32 + lane;
                now.thread = {machine->running, 0, 0};
                switch_fiber(machine->scheduler, thread.fiber);
                any = again = true;
            }
        }
    }
    return any;
}

void run_block(uint32_t shared_bytes) {
    const auto count = static_cast<uint32_t>(machine->threads.size());
    std::memset(now.shared, 0xff, shared_bytes);
    machine->in_block = machine->done = 0;
    for (uint32_t index = 0; index < count; index++) {
        machine->threads[index].state = State::ready;
        machine->threads[index].copies.clear();
        machine->threads[index].groups = 0;
        start_fiber(machine->threads[index].fiber, machine->stacks + STACK * index, STACK, run_thread);
    }
    for (Warp& warp : machine->warps) {
        warp = {nullptr, 0};
    }
    const auto warps = static_cast<uint32_t>(machine->warps.size());
    while (machine->done < count) {
        bool any = false;
        for (uint32_t index = 0; index < warps && !machine->failed; index++) {
            any |= run_warp(machine->reverse ? warps - 1 - index : index);
        }
        if (machine->failed) {
            return;
        }
        if (!any) {
            tell("block %u %u %u: %u of %u threads wait at a barrier, %u have ended, the others wait in their warps", now.block.x,
                 now.block.y, now.block.z, machine->in_block, count, machine->done);
            machine->failed = true;
            return;
        }
    }
}

void run_grid(const uint32_t grid[3], uint32_t shared_bytes) {
    for (uint32_t z = 0; z < grid[2]; z++) {
        for (uint32_t y = 0; y < grid[1]; y++) {
            for (uint32_t x = 0; x < grid[0] && !machine->failed; x++) {
                now.block = {x, y, z};
                run_block(shared_bytes);
            }
        }
    }
}

bool refused(const Kernel& kernel, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes) {
    const bool threads = block[1] == 1 && block[2] == 1 && block[0] % 32 == 0 && block[0] > 0 && block[0] <= kernel.most_threads;
    const bool blocks = grid[0] > 0 && grid[1] > 0 && grid[2] > 0 && grid[1] < 65536 && grid[2] < 65536;
    if (threads && blocks && shared_bytes <= MOST_SHARED) {
        return false;
    }
    tell("%s: no launch of %u %u %u blocks of %u %u %u threads with %u bytes", kernel.name, grid[0], grid[1], grid[2], block[0],
         block[1], block[2], shared_bytes);
    return true;
}

}  // namespace

Kernel::Kernel(const char* name, uint32_t most_threads, Invoke invoke)
    : name(name), most_threads(most_threads), invoke(invoke), next(kernels) {
    kernels = this;
}

void wait_for_block() {
    machine->threads[machine->running].state = State::in_block;
    machine->in_block++;
    if (machine->in_block == machine->threads.size()) {
        machine->in_block = 0;
        for (Thread& thread : machine->threads) {
            thread.state = State::ready;
        }
    }
    back();
}

void together(const char* kind, void* mine, Work work) {
    Warp& warp = machine->warps[machine->running / 32];
    Thread* lanes = &machine->threads[machine->running / 32 * 32];
    Thread& own = machine->threads[machine->running];
    if (warp.arrived > 0 && warp.kind != kind && std::strcmp(warp.kind, kind) != 0) {
        fault("the lanes of a warp went different ways");
    }
    warp.kind = kind;
    own.mine = mine;
    own.state = State::in_warp;
    warp.arrived++;
    if (warp.arrived < 32) {
        back();
        return;
    }
    void* all[32];
    for (int lane = 0; lane < 32; lane++) {
        all[lane] = lanes[lane].mine;
        lanes[lane].state = State::ready;
    }
    warp.arrived = 0;
    work(all);
}

void begin_copy(uint4* to, const uint4* from) {
    Thread& own = machine->threads[machine->running];
    *to = {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff};
    own.copies.push_back({to, from, own.groups});
}

void end_group() {
    machine->threads[machine->running].groups++;
}

void wait_for_copies(size_t under_way) {
    Thread& own = machine->threads[machine->running];
    size_t done = 0;
    for (; done < own.copies.size() && own.copies[done].group + under_way < own.groups; done++) {
        const Copy& copy = own.copies[done];
        *copy.to = copy.from == nullptr ? uint4{0, 0, 0, 0} : *copy.from;
    }
    own.copies.erase(own.copies.begin(), own.copies.begin() + static_cast<ptrdiff_t>(done));
}

void fault(const char* what) {
    tell("block %u %u %u, thread %u: %s", now.block.x, now.block.y, now.block.z, machine->running, what);
    machine->failed = true;
    back();
    __builtin_unreachable();
}

}  // namespace emulated

using namespace emulated;

extern "C" __attribute__((visibility("default"))) int emulated_launch(const char* name, const uint32_t grid[3],
                                                                      const uint32_t block[3], uint32_t shared_bytes,
                                                                      void** arguments) {
    make_machine();
    const Kernel* kernel = kernels;
    while (kernel != nullptr && std::strcmp(kernel->name, name) != 0) {
        kernel = kernel->next;
    }
    if (kernel == nullptr) {
        tell("no kernel is called %s", name);
        return 1;
    }
    if (refused(*kernel, grid, block, shared_bytes)) {
        return 2;
    }
    watch_memory();
    prepare(block[0]);
    now.threads = {block[0], 1, 1};
    now.blocks = {grid[0], grid[1], grid[2]};
    now.shared = machine->shared_end - (shared_bytes + 15) / 16 * 16;
    machine->invoke = kernel->invoke;
    machine->arguments = arguments;
    machine->failed = false;
    machine->error[0] = 0;
    machine->launching = true;
    if (sigsetjmp(machine->away, 1) == 0) {
        run_grid(grid, shared_bytes);
    } else {
        machine->failed = true;
    }
    machine->launching = false;
    return machine->failed ? 3 : 0;
}

extern "C" __attribute__((visibility("default"))) const char* emulated_error() {
    make_machine();
    return machine->error;
}

// Later lanes and warps first from now on, on this thread: what comes out must be the same.
extern "C" __attribute__((visibility("default"))) void emulated_reverse(int reverse) {
    make_machine();
    machine->reverse = reverse != 0;
}

extern "C" __attribute__((visibility("default"))) void* emulated_allocate(size_t bytes) {
    const size_t size = (bytes + 15) / 16 * 16, pages = whole_pages(size);
    unsigned char* start = map(pages);
    if (start == nullptr) {
        return nullptr;
    }
    std::memset(start, 0xff, pages);
    return start + pages - size;
}

extern "C" __attribute__((visibility("default"))) void emulated_free(void* memory, size_t bytes) {
    const size_t size = (bytes + 15) / 16 * 16, pages = whole_pages(size);
    munmap(static_cast<unsigned char*>(memory) + size - pages, pages + GUARD);
}
