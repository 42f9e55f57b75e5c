// The threads of one CUDA block on the host: a fiber each, which run until they wait for their warp or block.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

namespace emulation {

// Of warps, each as far as it gets.
enum class Order : int { ascending = 0, descending = 1, random = 2 };
// Of copies: when they are started, when they are waited for, or either.
enum class Landing : int { early = 0, late = 1, random = 2 };

// What went wrong; all zero in a right kernel.
struct Faults {
    int64_t bank_conflicts = 0;          // cycles beyond the least
    int64_t outside = 0;                 // accesses outside what the launch was given
    int64_t misaligned = 0;              // addresses that are no multiple of what is accessed
    int64_t indices = 0;                 // groups whose metadata does not ascend
    int64_t different_instructions = 0;  // lanes of a warp that met in different instructions
    int64_t stuck = 0;                   // threads that waited for ever
};

class Block {
public:
    Block(int threads, int shared_bytes, Order order, unsigned seed, Faults& faults)
        : shared(static_cast<size_t>(shared_bytes), 0xff),
          faults(faults),
          warps_(static_cast<size_t>(threads / 32)),
          fibers_(static_cast<size_t>(threads)),
          order_(order),
          random_(seed) {}

    void run(const std::function<void(int thread)>& body) {
        body_ = &body;
        for (size_t i = 0; i < fibers_.size(); ++i) start(static_cast<int>(i));
        std::vector<int> turns(warps_.size());
        for (size_t i = 0; i < turns.size(); ++i)
            turns[i] = static_cast<int>(order_ == Order::descending ? turns.size() - 1 - i : i);
        bool going = true;
        while (going) {
            going = false;
            if (order_ == Order::random) std::shuffle(turns.begin(), turns.end(), random_);
            for (const int warp : turns)
                while (run_warp(warp)) {
                    going = true;
                    if (order_ == Order::random && random_() % 4 == 0) break;
                }
        }
        for (const Fiber& fiber : fibers_) faults.stuck += !fiber.done;
    }

    // The calling thread waits for the others of its warp; the last to come does `act` for all of them.
    template <class Act>
    void meet_warp(int thread, int instruction, void* operands, const Act& act) {
        Warp& warp = warps_[static_cast<size_t>(thread / 32)];
        warp.operands[thread % 32] = operands;
        if (warp.arrived && warp.instruction != instruction) ++faults.different_instructions;
        warp.instruction = instruction;
        meet(thread, 32, warp.arrived, warp.generation, [&] { act(warp.operands); });
    }
    template <class Act>
    void meet_block(int thread, const Act& act) {
        meet(thread, static_cast<int>(fibers_.size()), arrived_, generation_, act);
    }
    unsigned random() { return static_cast<unsigned>(random_()); }

    std::vector<uint8_t> shared;  // starts as NaNs
    bool flag = false;            // what a block-wide vote has found
    Faults& faults;

private:
    struct Fiber {
        ucontext_t context;
        const int* waits_for = nullptr;
        int waits_since = 0;
        bool done = false;
    };
    struct Warp {
        void* operands[32];
        int arrived = 0, generation = 0, instruction = 0;
    };

    void start(int thread) {
        // Blocks run one after the other and share their stacks.
        constexpr size_t stack_bytes = 64 << 10;
        static std::vector<char> stacks;
        const size_t index = static_cast<size_t>(thread);
        if (stacks.size() < fibers_.size() * stack_bytes) stacks.resize(fibers_.size() * stack_bytes);
        Fiber& fiber = fibers_[index];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks.data() + index * stack_bytes;
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = &scheduler_;
        const auto self = reinterpret_cast<uintptr_t>(this);
        makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 3, static_cast<unsigned>(self),
                    static_cast<unsigned>(self >> 32), thread);
    }
    static void enter(unsigned low, unsigned high, int thread) {
        auto* const block = reinterpret_cast<Block*>(uintptr_t{high} << 32 | low);
        (*block->body_)(thread);
        block->fibers_[static_cast<size_t>(thread)].done = true;
    }
    // Lets each lane go on that can; whether any could.
    bool run_warp(int warp) {
        bool any = false;
        for (int lane = 0; lane < 32; ++lane) {
            Fiber& fiber = fibers_[static_cast<size_t>(32 * warp + lane)];
            if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.waits_since)) continue;
            fiber.waits_for = nullptr;
            any = true;
            swapcontext(&scheduler_, &fiber.context);
        }
        return any;
    }
    template <class Act>
    void meet(int thread, int all, int& arrived, int& generation, const Act& act) {
        if (++arrived == all) {
            act();
            arrived = 0;
            ++generation;
            return;
        }
        Fiber& fiber = fibers_[static_cast<size_t>(thread)];
        fiber.waits_for = &generation;
        fiber.waits_since = generation;
        swapcontext(&fiber.context, &scheduler_);
    }

    std::vector<Warp> warps_;
    std::vector<Fiber> fibers_;
    int arrived_ = 0, generation_ = 0;
    const std::function<void(int)>* body_ = nullptr;
    Order order_;
    std::mt19937 random_;
    ucontext_t scheduler_;
};

}  // namespace emulation
