#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace vlprune {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OmpInt = int (*)();

struct OpenMp {
    GompParallel parallel = nullptr;
    OmpInt thread_num = nullptr;
    OmpInt num_threads = nullptr;
} openmp;

struct Job {
    int parts;
    void (*body)(const void*, int, int);
    const void* context;
};

void run_openmp_share(void* pointer) {
    const Job& job = *static_cast<const Job*>(pointer);
    // The team can be smaller than asked for (nested regions, OMP_DYNAMIC): stride over what is there.
    const int team = openmp.num_threads();
    for (int part = openmp.thread_num(); part < job.parts; part += team) job.body(job.context, part, job.parts);
}

// Workers wait on a condition variable: slower to wake than OpenMP's spinning, but it costs nobody a core.
class Pool {
public:
    void run(const Job& job) {
        std::lock_guard<std::mutex> one_at_a_time(run_mutex_);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < job.parts - 1) {
                const int part = static_cast<int>(workers_.size()) + 1;
                workers_.emplace_back([this, part, seen = generation_] { work(part, seen); });
                workers_.back().detach();
            }
            job_ = &job;
            pending_ = static_cast<int>(workers_.size());
            ++generation_;
        }
        wake_.notify_all();
        job.body(job.context, 0, job.parts);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return pending_ == 0; });
    }

private:
    void work(int part, unsigned seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            const Job job = *job_;
            lock.unlock();
            if (part < job.parts) job.body(job.context, part, job.parts);
            lock.lock();
            if (--pending_ == 0) done_.notify_one();
        }
    }

    std::mutex run_mutex_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    const Job* job_ = nullptr;
    int pending_ = 0;
    unsigned generation_ = 0;
};

// Never destroyed: detached workers may outlive static destructors. A forked child has none of its
// parent's threads, so it starts a pool of its own.
Pool& pool() {
    static std::mutex mutex;
    static Pool* current = nullptr;
    static long owner = -1;
#if defined(__unix__) || defined(__APPLE__)
    const long process = static_cast<long>(getpid());
#else
    const long process = 0;
#endif
    std::lock_guard<std::mutex> lock(mutex);
    if (current == nullptr || owner != process) {
        current = new Pool;
        owner = process;
    }
    return *current;
}

}  // namespace

void set_openmp(void* gomp_parallel, void* get_thread_num, void* get_num_threads) {
    const bool complete = gomp_parallel && get_thread_num && get_num_threads;
    openmp.parallel = complete ? reinterpret_cast<GompParallel>(gomp_parallel) : nullptr;
    openmp.thread_num = reinterpret_cast<OmpInt>(get_thread_num);
    openmp.num_threads = reinterpret_cast<OmpInt>(get_num_threads);
}

void parallel_parts(int parts, void (*body)(const void*, int, int), const void* context) {
    if (parts <= 1) {
        if (parts == 1) body(context, 0, 1);
        return;
    }
    Job job{parts, body, context};
    if (openmp.parallel) {
        openmp.parallel(run_openmp_share, &job, static_cast<unsigned>(parts), 0);
    } else {
        pool().run(job);
    }
}

}  // namespace vlprune
