#include "include/emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kGuardBytes = 1 << 10;  // behind the dynamic shared memory

std::mt19937 rng{std::random_device{}()};
unsigned below(size_t n) { return static_cast<unsigned>(rng() % n); }

struct Copy {
  void* to;
  const void* from;
  int bytes, whole;

  void land() const {
    if (bytes > 0) std::memcpy(to, from, bytes);
    std::memset(static_cast<char*>(to) + bytes, 0, whole - bytes);
  }
};

/// A thread of the block. It runs kernel after kernel on its own stack: contexts begin with setcontext, and later
/// switches are _longjmp, which unlike swapcontext makes no system call.
struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t start;
  jmp_buf at;
  bool started = false;
  std::vector<Copy> open;                 // copies not yet in a group
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
};

/// Where threads meet, of a warp or a block.
struct Meeting {
  size_t size = 0;
  std::vector<int> waiting;
  const char* operation = nullptr;  // at which they wait
};

struct Warp {
  std::vector<int> ready;  // threads
  Meeting barrier;
  // Even and odd meetings take turns: a lane is never two ahead of another.
  std::array<Shown, kWarp> shown[2];
  unsigned meetings = 0;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
Meeting block_barrier;
jmp_buf scheduler;
int current;  // thread that runs
size_t finished;
const std::function<void()>* body;
std::exception_ptr error;

alignas(1024) char shared_memory[kMaxShared + kGuardBytes];
size_t shared_size;
std::vector<const void*> poisoned;  // __shared__ variables of this block

std::vector<std::pair<Copy, Barrier*>> counted;  // copies that a barrier counts, not landed
std::vector<int> parked;                         // threads that wait for a barrier's phase

void land_one() {
  std::swap(counted[below(counted.size())], counted.back());
  const auto [copy, barrier] = counted.back();
  counted.pop_back();
  copy.land();
  barrier->bytes -= copy.bytes;
  barrier->end_phase();
}

/// Back to the scheduler, until it resumes this fiber.
void pause() {
  if (_setjmp(fibers[current]->at) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  while (true) {
    try {
      (*body)();
    } catch (...) {
      error = std::current_exception();
    }
    ++finished;
    pause();
  }
}

void resume(int thread) {
  current = thread;
  threadIdx = {static_cast<unsigned>(thread)};
  Fiber& fiber = *fibers[thread];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack = {.ss_sp = fiber.stack.get(), .ss_flags = 0, .ss_size = kStackBytes};
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

/// True for the thread that came last.
bool meet(Meeting& barrier, const char* operation) {
  if (barrier.waiting.empty()) barrier.operation = operation;
  if (std::strcmp(barrier.operation, operation) != 0)
    fail(std::string("threads that should meet do so at ") + barrier.operation + " and " + operation);
  barrier.waiting.push_back(current);
  if (barrier.waiting.size() < barrier.size) {
    pause();
    return false;
  }
  for (int thread : barrier.waiting) {
    if (thread != current) warps[thread / kWarp].ready.push_back(thread);
  }
  barrier.waiting.clear();
  return true;
}

/// Lets warps take turns: for one switch of each ready lane, or until all its lanes wait for other warps.
void run_threads() {
  std::vector<Warp*> ready;
  while (finished < blockDim.x && !error) {
    ready.clear();
    for (Warp& warp : warps) {
      if (!warp.ready.empty()) ready.push_back(&warp);
    }
    if (ready.empty() && !counted.empty()) {
      land_one();
      continue;
    }
    if (ready.empty()) fail("threads wait at a barrier that not all threads reach");
    std::vector<int>& lanes = ready[below(ready.size())]->ready;
    for (size_t turns = below(4) == 0 ? SIZE_MAX : lanes.size(); turns > 0 && !lanes.empty() && !error;
         --turns) {
      std::swap(lanes[below(lanes.size())], lanes.back());
      const int thread = lanes.back();
      lanes.pop_back();
      resume(thread);
    }
  }
  if (error) std::rethrow_exception(std::exchange(error, nullptr));
}

void run_block(unsigned x, unsigned y) {
  blockIdx = {x, y};
  std::memset(shared_memory, 0xff, shared_size + kGuardBytes);
  poisoned.clear();
  finished = 0;
  warps.resize(blockDim.x / kWarp);
  for (size_t w = 0; w < warps.size(); ++w) {
    warps[w].ready.resize(kWarp);
    std::iota(warps[w].ready.begin(), warps[w].ready.end(), w * kWarp);
    warps[w].barrier.size = kWarp;
  }
  block_barrier.size = blockDim.x;
  run_threads();
  for (const auto& fiber : fibers) {
    for (const auto& group : fiber->groups) {
      if (!group.empty()) fail("an asynchronous copy was never waited for");
    }
    if (!fiber->open.empty()) fail("an asynchronous copy was never committed");
    fiber->groups.clear();
  }
  if (!counted.empty()) fail("a copy that a barrier counts was never waited for");
  const char* end = shared_memory + shared_size;
  if (std::any_of(end, end + kGuardBytes, [](char byte) { return byte != '\xff'; }))
    fail("a kernel wrote behind its dynamic shared memory");
}

}  // namespace

void fail(const std::string& what) { throw std::runtime_error("emulator: " + what); }

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  if (block.x == 0 || block.x > 1024 || block.x % kWarp != 0 || block.y * block.z * grid.z != 1)
    fail("a block is 1 to 32 whole warps in x, a grid has x and y");
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535) fail("a grid has 1 to 65535 blocks in y, and some in x");
  if (shared_bytes > kMaxShared) fail("too much shared memory");
  while (fibers.size() < block.x) fibers.push_back(std::make_unique<Fiber>());
  gridDim = grid;
  blockDim = block;
  shared_size = shared_bytes;
  body = &thread;
  std::vector<unsigned> order(size_t{grid.x} * grid.y);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  try {
    for (unsigned i : order) run_block(i % grid.x, i / grid.x);
  } catch (...) {  // threads are stuck anywhere: the next kernel gets new ones
    fibers.clear();
    warps.clear();
    counted.clear();
    parked.clear();
    block_barrier = {};
    throw;
  }
}

void* dynamic_shared() { return shared_memory; }

void check_shared(const void* data, size_t bytes, size_t alignment) {
  const size_t offset = static_cast<const char*>(data) - shared_memory;  // huge where it lies before
  if (offset > shared_size || bytes > shared_size - offset) fail("an address beyond dynamic shared memory");
  if (offset % alignment != 0) fail("an address in shared memory that is not aligned");
}

void poison_once(void* data, size_t bytes) {
  if (std::find(poisoned.begin(), poisoned.end(), data) != poisoned.end()) return;
  std::memset(data, 0xff, bytes);
  poisoned.push_back(data);
}

void sync_block() { meet(block_barrier, "__syncthreads"); }

void sync_warp(const char* operation) {
  Warp& warp = warps[current / kWarp];
  if (meet(warp.barrier, operation)) ++warp.meetings;
}

const std::array<Shown, kWarp>& show(const Shown& own, const char* operation) {
  Warp& warp = warps[current / kWarp];
  std::array<Shown, kWarp>& all = warp.shown[warp.meetings % 2];
  all[current % kWarp] = own;
  sync_warp(operation);
  return all;
}

void start_copy(void* to, const void* from, int bytes, int whole) {
  check_shared(to, whole, whole);
  if (bytes < 0 || bytes > whole) fail("an asynchronous copy of more bytes than its size");
  if (bytes > 0 && reinterpret_cast<uintptr_t>(from) % whole != 0)
    fail("an asynchronous copy from an address that is not aligned");
  const Copy copy{to, from, bytes, whole};
  if (below(2) == 0) {
    copy.land();
  } else {
    std::memset(to, 0xff, whole);
    fibers[current]->open.push_back(copy);
  }
}

void Barrier::init(int n) {
  arrivals = open = static_cast<uint8_t>(n);
  phase = 0;
  bytes = 0;
}

void Barrier::end_phase() {
  if (open > 0 || bytes > 0) return;
  open = arrivals;
  ++phase;
  for (int thread : parked) warps[thread / kWarp].ready.push_back(thread);
  parked.clear();
}

void Barrier::arrive(int announced) {
  if (open == 0 || open > arrivals)
    fail("a thread arrives at a barrier that is full, or was never initialised");
  bytes += announced;
  --open;
  end_phase();
}

void Barrier::wait(int parity) {
  if (!counted.empty() && below(4) == 0) land_one();
  while (phase % 2 == parity) {
    parked.push_back(current);
    pause();
  }
}

void Barrier::copy(void* to, const void* from, int size) {
  check_shared(to, size, 16);
  if (size <= 0 || size % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail("a bulk copy of a size or from an address that is no multiple of 16");
  std::memset(to, 0xff, size);
  counted.push_back({{to, from, size, size}, this});
}

void commit_copies() {
  Fiber& fiber = *fibers[current];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void wait_copies(int n) {
  auto& groups = fibers[current]->groups;
  while (static_cast<int>(groups.size()) > n) {
    for (const Copy& copy : groups.front()) copy.land();
    groups.erase(groups.begin());
  }
}

}  // namespace emulator
