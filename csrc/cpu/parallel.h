// Work split over threads: torch's own OpenMP pool where it is known, a small pool of our own elsewhere.
// A second OpenMP runtime beside torch's would spin against it, so nothing here links one.
#pragma once
#include <atomic>
#include <new>

namespace vlprune {

// GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the runtime that torch uses.
// All null: use our own pool.
void set_openmp(void* gomp_parallel, void* get_thread_num, void* get_num_threads);

// Calls body(context, part, parts) for part = 0 .. parts-1, each once, on up to `parts` threads, and
// waits for all. The same part runs on the same thread of the pool from call to call. Must not throw.
void parallel_parts(int parts, void (*body)(const void* context, int part, int parts), const void* context);

// The same for a callable body(part, parts), which may run out of memory: no exception may cross the threads,
// so it is thrown when all have ended.
template <class Body>
void parallel_parts(int parts, const Body& body) {
    struct Call {
        const Body& body;
        mutable std::atomic<bool> failed;
    } call{body, {false}};
    parallel_parts(
        parts,
        [](const void* context, int part, int n) {
            const Call& c = *static_cast<const Call*>(context);
            try {
                c.body(part, n);
            } catch (const std::bad_alloc&) {
                c.failed = true;
            }
        },
        static_cast<const void*>(&call));
    if (call.failed) throw std::bad_alloc();
}

}  // namespace vlprune
