#include "shared_segment.h"

#include <stdexcept>

#if defined(__linux__)

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <ctime>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

namespace megatron {
namespace {

constexpr int kPauses = 100;           // of the processor before the first system call: some microseconds
constexpr int kYields = 1000;          // of the processor to others before sleeping, from which waking takes 50 us
constexpr double kSliceSeconds = 0.5;  // of sleep, between looks at signals, the clock and the others' health
constexpr uint64_t kMagic = 0x6d65676174726f6eULL;

enum Fate : int32_t { kPresent = 0, kClosed = -1 };  // positive: gave up because of member (fate - 1)

static_assert(std::atomic<int64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free,
              "atomics without locks work between processes");

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Sleep while the word has this value, for less than a second; whether something woke us. Not FUTEX_PRIVATE, which is
// for the threads of one process.
bool futex_wait(std::atomic<uint32_t>& word, uint32_t value, double seconds) {
    timespec slice{};
    slice.tv_nsec = static_cast<long>(seconds * 1e9);
    const long result = syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, value, &slice, nullptr, 0);
    return result == 0 || errno == EAGAIN;
}

void futex_wake(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// State letter and start time of a process; {0, 0} where /proc does not tell.
std::pair<char, uint64_t> process_state(int pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    std::string line;
    if (!std::getline(file, line)) return {0, 0};
    const size_t name_end = line.rfind(')');  // the name may hold anything
    if (name_end == std::string::npos || name_end + 2 >= line.size()) return {0, 0};
    size_t at = name_end + 2;
    const char state = line[at];
    for (int field = 3; field < 22 && at != std::string::npos; ++field) at = line.find(' ', at + 1);
    return {state, at == std::string::npos ? 0 : std::strtoull(line.c_str() + at, nullptr, 10)};
}

uint64_t pid_namespace() {
    struct stat info;
    return stat("/proc/self/ns/pid", &info) == 0 ? static_cast<uint64_t>(info.st_ino) : 0;
}

// A killed process that its parent has not asked for yet still answers kill(pid, 0), and its number may be given to
// another: so the state and the start time decide where /proc tells them.
bool is_dead(int pid, uint64_t start_time) {
    if (kill(pid, 0) != 0 && errno == ESRCH) return true;
    const auto [state, start] = process_state(pid);
    if (state == 0 || start_time == 0) return false;
    return state == 'Z' || state == 'X' || start != start_time;
}

}  // namespace

struct alignas(128) SharedSegment::Member {
    std::atomic<int64_t> counters[3];
    std::atomic<uint32_t> signal, sleepers;  // signal: changes with the counters, the word to sleep on
    std::atomic<int32_t> fate;
    std::atomic<uint64_t> calls[kDepth];
    std::atomic<int32_t> pid;
    std::atomic<uint64_t> start_time, pid_namespace;
};

struct alignas(128) SharedSegment::Header {
    std::atomic<uint64_t> magic;
    std::atomic<int32_t> attached;
    int32_t size;
    int64_t part_bytes;
    Member members[];
};

SharedSegment::SharedSegment(const std::string& name, int rank, int size, int64_t slot_bytes, bool create,
                             double timeout_seconds, std::function<void()> interrupt)
    : rank_(rank),
      size_(size),
      timeout_seconds_(timeout_seconds),
      interrupt_(std::move(interrupt)),
      owner_(getpid()) {
    if (size < 1 || rank < 0 || rank >= size || !(timeout_seconds > 0)) {
        throw std::invalid_argument("SharedGroup: a rank in [0, size) and a positive time limit are needed");
    }
    if (create != (rank == 0)) throw std::invalid_argument("SharedGroup: member 0 creates, the others attach");
    if (name.empty() || name.find('/') != std::string::npos) {
        throw std::invalid_argument("SharedGroup: a name without '/' is needed");
    }
    part_bytes_ = slot_bytes / (kDepth * (size + 1)) / kLine * kLine;
    if (part_bytes_ < kLine) throw std::invalid_argument("SharedGroup: slots are too small");
    spins_ = sysconf(_SC_NPROCESSORS_ONLN) >= size;
    path_ = "/dev/shm/" + name;  // what shm_open opens, without librt of old systems
    map(create);

    Member& me = member(rank_);
    me.start_time.store(process_state(owner_).second);
    me.pid_namespace.store(megatron::pid_namespace());
    me.pid.store(owner_);
    if (header().attached.fetch_add(1) + 1 == size_) unlink(path_.c_str());
}

void SharedSegment::map(bool create) {
    const int64_t header_bytes = round_up(sizeof(Header) + sizeof(Member) * static_cast<size_t>(size_), 4096);
    bytes_ = header_bytes + kDepth * (size_ + 1) * part_bytes_ * size_;
    const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT | O_EXCL : 0);
    const int file = open(path_.c_str(), flags, 0600);
    if (file < 0) throw std::system_error(errno, std::generic_category(), path_);
    int error = 0;
    // Pages are reserved now: lack of room in /dev/shm is an error here and not SIGBUS at the first write.
    while (create && (error = posix_fallocate(file, 0, bytes_)) == EINTR) {
    }
    struct stat info;
    if (!create && (fstat(file, &info) != 0 || info.st_size != bytes_)) error = EINVAL;
    void* base = error != 0 ? MAP_FAILED : mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (error == 0 && base == MAP_FAILED) error = errno;
    close(file);
    if (error == 0) {
        auto& header = *static_cast<Header*>(base);
        if (create) {  // fresh pages are zero, which is where all counters start
            header.size = size_;
            header.part_bytes = part_bytes_;
            header.magic.store(kMagic, std::memory_order_release);
        } else if (header.magic.load(std::memory_order_acquire) != kMagic || header.size != size_ ||
                   header.part_bytes != part_bytes_) {
            munmap(base, bytes_);
            error = EINVAL;
        }
    }
    if (error != 0) {
        if (create) unlink(path_.c_str());
        throw std::system_error(error, std::generic_category(), path_ + ", " + std::to_string(bytes_) + " bytes");
    }
    base_ = static_cast<char*>(base);
}

SharedSegment::~SharedSegment() {
    if (getpid() == owner_) {
        if (!broken_) member(rank_).fate.store(kClosed);
        wake();
        if (rank_ == 0 && header().attached.load() < size_) unlink(path_.c_str());
    }
    munmap(base_, bytes_);
}

SharedSegment::Header& SharedSegment::header() const { return *reinterpret_cast<Header*>(base_); }

SharedSegment::Member& SharedSegment::member(int rank) const { return header().members[rank]; }

char* SharedSegment::buffer(int rank, int64_t chunk) const {
    const int64_t bytes = (size_ + 1) * part_bytes_;
    return base_ + bytes_ - (size_ - rank) * kDepth * bytes + chunk % kDepth * bytes;
}

void SharedSegment::state_call(int64_t chunk, uint64_t call) {
    member(rank_).calls[chunk % kDepth].store(call, std::memory_order_relaxed);
}

void SharedSegment::compare_calls(int64_t chunk) {
    const auto call = [&](int rank) { return member(rank).calls[chunk % kDepth].load(std::memory_order_relaxed); };
    for (int other = 0; other < size_; ++other) {
        if (call(other) == call(rank_)) continue;
        fail(other, "member " + std::to_string(other) + " calls another operation, type or size");
    }
}

// ---- Operations begin and end --------------------------------------------------------------------------------------

void SharedSegment::enter(const char* operation) {
    if (getpid() != owner_) throw std::runtime_error("a SharedGroup is used after a fork");
    if (broken_) throw std::runtime_error("a SharedGroup is used after an error");
    operation_ = operation;
    culprit_ = rank_;
}

void SharedSegment::give_up() {
    broken_ = true;
    member(rank_).fate.store(1 + culprit_);
    wake();
}

void SharedSegment::fail(int culprit, const std::string& message) {
    culprit_ = culprit;
    throw std::runtime_error(std::string(operation_) + " in shared memory: " + message);
}

// ---- Counting and waiting ------------------------------------------------------------------------------------------

void SharedSegment::count(Counter counter, int64_t chunks) {
    member(rank_).counters[counter].store(chunks, std::memory_order_release);
}

void SharedSegment::wake() {
    Member& me = member(rank_);
    // Either this member sees the sleeper, or the sleeper sees the new signal: both are sequentially consistent.
    me.signal.fetch_add(1);
    if (me.sleepers.load() != 0) futex_wake(me.signal);
}

void SharedSegment::wait(Counter counter, int64_t target) {
    for (int other = 0; other < size_; ++other) {
        if (other != rank_ && member(other).counters[counter].load(std::memory_order_acquire) < target) {
            wait_for(other, counter, target);
        }
    }
}

void SharedSegment::wait_for(int other, Counter counter, int64_t target) {
    Member& member = this->member(other);
    const auto arrived = [&] { return member.counters[counter].load(std::memory_order_acquire) >= target; };
    if (spins_) {
        for (int i = 0; i < kPauses; ++i) {
            if (arrived()) return;
            relax();
        }
    }
    for (int i = 0; i < kYields; ++i) {
        if (arrived()) return;
        sched_yield();
    }
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    double next_look = kSliceSeconds;
    while (!arrived()) {
        const double waited = std::chrono::duration<double>(Clock::now() - begin).count();
        if (waited >= next_look || member.fate.load() != kPresent) {
            look_at_missing(counter, target);
            next_look = waited + kSliceSeconds;
        }
        if (waited >= timeout_seconds_) fail_late(counter, target);
        member.sleepers.fetch_add(1);
        const uint32_t signal = member.signal.load();
        bool woken = true;
        if (!arrived() && member.fate.load() == kPresent) {
            woken = futex_wait(member.signal, signal, std::min(kSliceSeconds, timeout_seconds_ - waited));
        }
        member.sleepers.fetch_sub(1);
        if (!woken) interrupt_();  // the slice is over, or a signal came
    }
}

// Raises if a member that has not arrived never will.
void SharedSegment::look_at_missing(Counter counter, int64_t target) {
    const uint64_t here = member(rank_).pid_namespace.load();
    const auto missing = [&](int other) { return member(other).counters[counter].load() < target; };
    for (int other = 0; other < size_; ++other) {
        Member& it = member(other);
        const int pid = it.pid.load();
        if (!missing(other) || pid == 0 || here == 0 || it.pid_namespace.load() != here) continue;
        // It may have died just after it arrived.
        if (is_dead(pid, it.start_time.load()) && missing(other) && it.fate.load() == kPresent) {
            fail(other, "member " + std::to_string(other) + " (process " + std::to_string(pid) + ") has died");
        }
    }
    for (int other = 0; other < size_; ++other) {
        const int32_t fate = member(other).fate.load();
        if (fate == kPresent || !missing(other)) continue;
        const std::string name = "member " + std::to_string(other);
        if (fate == kClosed) fail(other, name + " has left the group");
        if (fate - 1 == other) fail(other, name + " has given up");
        fail(fate - 1, name + " has given up because of member " + std::to_string(fate - 1));
    }
}

void SharedSegment::fail_late(Counter counter, int64_t target) {
    std::string names;
    int culprit = rank_;
    for (int other = size_ - 1; other >= 0; --other) {
        if (other == rank_ || member(other).counters[counter].load() >= target) continue;
        names = std::to_string(other) + (names.empty() ? "" : ", ") + names;
        culprit = other;
    }
    std::ostringstream message;
    message << "member " << names << " of " << size_ << " did not arrive within " << timeout_seconds_ << " s";
    fail(culprit, message.str());
}

}  // namespace megatron

#else  // not Linux: callers fall back

namespace megatron {

SharedSegment::SharedSegment(const std::string&, int, int, int64_t, bool, double, std::function<void()>) {
    throw std::runtime_error("shared memory groups need Linux");
}
SharedSegment::~SharedSegment() = default;
char* SharedSegment::buffer(int, int64_t) const { return nullptr; }
void SharedSegment::state_call(int64_t, uint64_t) {}
void SharedSegment::compare_calls(int64_t) {}
void SharedSegment::enter(const char*) {}
void SharedSegment::give_up() {}
void SharedSegment::count(Counter, int64_t) {}
void SharedSegment::wake() {}
void SharedSegment::wait(Counter, int64_t) {}

}  // namespace megatron

#endif
