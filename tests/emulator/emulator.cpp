#include "include/emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr int kWarpgroup = 4 * kWarp;
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

struct Product {
  float* sums;
  std::function<void(float*)> add;  // null when it has
};

/// A thread's asynchronous products.
struct Products {
  std::vector<std::vector<Product>> batches;  // oldest first, the last one still open where it has begun
  bool begun = false;
  std::map<float*, std::vector<float>> sums;  // what will be there

  void add(std::vector<Product>& batch) {
    for (Product& product : batch) {
      if (product.add) std::exchange(product.add, nullptr)(sums[product.sums].data());
    }
  }
  bool has(const float* to) const {
    for (const auto& batch : batches) {
      for (const Product& product : batch) {
        if (product.sums == to) return true;
      }
    }
    return false;
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
  Products products;
};

/// Where threads meet, of a warp, a warpgroup, a block or a cluster.
struct Meeting {
  size_t size = 0;
  std::vector<int> waiting;
  const char* operation = nullptr;  // at which they wait
};

struct Warp {
  std::vector<int> ready;  // threads
  Meeting barrier;
  Meeting group;  // of the warpgroup, the first warp's
  // Even and odd meetings take turns: a lane is never two ahead of another.
  std::array<Shown, kWarp> shown[2];
  unsigned meetings = 0;
};

struct Block {
  std::array<Meeting, 16> barriers;  // the first is __syncthreads'
  size_t finished = 0;               // threads
};

// Threads, and so fibers and warps, are counted through the cluster.
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::vector<Block> blocks;
Meeting cluster_barrier;
jmp_buf scheduler;
int current;           // thread that runs
unsigned first_block;  // of the cluster
size_t finished;
const std::function<void()>* body;
std::exception_ptr error;

alignas(1024) char shared_memory[kMaxCluster][kMaxShared + kGuardBytes];
size_t shared_size;
std::vector<const void*> poisoned;  // __shared__ variables of this block

struct Counted {
  std::function<void()> land;
  int bytes;
  Barrier* barrier;
};
std::vector<Counted> counted;  // copies that a barrier counts, not landed
std::vector<int> parked;       // threads that wait for a barrier's phase

void land_one() {
  std::swap(counted[below(counted.size())], counted.back());
  const Counted copy = std::move(counted.back());
  counted.pop_back();
  copy.land();
  copy.barrier->bytes -= copy.bytes;
  copy.barrier->end_phase();
}

Block& current_block() { return blocks[cluster_rank()]; }

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
    ++current_block().finished;
    ++finished;
    pause();
  }
}

void resume(int thread) {
  current = thread;
  threadIdx.x = thread % blockDim.x;
  blockIdx.x = first_block + cluster_rank();
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
  while (finished < blocks.size() * blockDim.x && !error) {
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

/// The blocks from (x, y) on, as many as there are in `blocks`.
void run_cluster(unsigned x, unsigned y) {
  first_block = x;
  blockIdx = {x, y};
  const size_t threads = blocks.size() * blockDim.x;
  for (size_t i = 0; i < blocks.size(); ++i) {
    std::memset(shared_memory[i], 0xff, shared_size + kGuardBytes);
    blocks[i].barriers[0].size = blockDim.x;
    blocks[i].finished = 0;
  }
  cluster_barrier.size = threads;
  poisoned.clear();
  finished = 0;
  warps.resize(threads / kWarp);
  for (size_t w = 0; w < warps.size(); ++w) {
    warps[w].ready.resize(kWarp);
    std::iota(warps[w].ready.begin(), warps[w].ready.end(), w * kWarp);
    warps[w].barrier.size = kWarp;
  }
  run_threads();
  for (size_t i = 0; i < threads; ++i) {
    Fiber* const fiber = fibers[i].get();
    for (const auto& group : fiber->groups) {
      if (!group.empty()) fail("an asynchronous copy was never waited for");
    }
    if (!fiber->open.empty()) fail("an asynchronous copy was never committed");
    fiber->groups.clear();
    if (!fiber->products.sums.empty()) fail("a product was never waited for");
    fiber->products = {};
  }
  if (!counted.empty()) fail("a copy that a barrier counts was never waited for");
  for (size_t i = 0; i < blocks.size(); ++i) {
    const char* end = shared_memory[i] + shared_size;
    if (std::any_of(end, end + kGuardBytes, [](char byte) { return byte != '\xff'; }))
      fail("a kernel wrote behind its dynamic shared memory");
  }
}

}  // namespace

void fail(const std::string& what) { throw std::runtime_error("emulator: " + what); }

void run(dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster, const std::function<void()>& thread) {
  if (block.x == 0 || block.x > 1024 || block.x % kWarp != 0 || block.y * block.z * grid.z != 1)
    fail("a block is 1 to 32 whole warps in x, a grid has x and y");
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535) fail("a grid has 1 to 65535 blocks in y, and some in x");
  if (cluster == 0 || cluster > kMaxCluster || grid.x % cluster != 0)
    fail("a cluster has 1 to 8 blocks, and a grid whole clusters in x");
  if (shared_bytes > kMaxShared) fail("too much shared memory");
  while (fibers.size() < cluster * block.x) fibers.push_back(std::make_unique<Fiber>());
  gridDim = grid;
  blockDim = block;
  shared_size = shared_bytes;
  body = &thread;
  blocks.resize(cluster);
  std::vector<unsigned> order(size_t{grid.x / cluster} * grid.y);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  try {
    for (unsigned i : order) run_cluster(i * cluster % grid.x, i / (grid.x / cluster));
  } catch (...) {  // threads are stuck anywhere: the next kernel gets new ones
    fibers.clear();
    warps.clear();
    counted.clear();
    parked.clear();
    blocks.clear();
    cluster_barrier = {};
    throw;
  }
}

void* dynamic_shared() { return shared_memory[cluster_rank()]; }

void check_shared(const void* data, size_t bytes, size_t alignment) {
  // Huge where it lies before.
  const size_t offset = static_cast<const char*>(data) - shared_memory[cluster_rank()];
  if (offset > shared_size || bytes > shared_size - offset) fail("an address beyond dynamic shared memory");
  if (offset % alignment != 0) fail("an address in shared memory that is not aligned");
}

unsigned cluster_rank() { return current / blockDim.x; }

const void* of_cluster(const void* own, int rank) {
  check_shared(own, 16, 16);
  if (rank < 0 || rank >= static_cast<int>(blocks.size())) fail("no such block in the cluster");
  if (blocks[rank].finished == blockDim.x)
    fail("shared memory is read of a block of the cluster that has finished");
  return shared_memory[rank] + (static_cast<const char*>(own) - shared_memory[cluster_rank()]);
}

void poison_once(void* data, size_t bytes) {
  if (blocks.size() > 1) fail("a __shared__ variable, of which the emulator has one, in a cluster of blocks");
  if (std::find(poisoned.begin(), poisoned.end(), data) != poisoned.end()) return;
  std::memset(data, 0xff, bytes);
  poisoned.push_back(data);
}

void sync_block() { meet(current_block().barriers[0], "__syncthreads"); }

void sync_cluster() { meet(cluster_barrier, "sync_cluster"); }

void sync_threads(int id, int threads) {
  if (id < 1 || id > 15 || threads <= 0 || threads > static_cast<int>(blockDim.x) || threads % kWarp != 0)
    fail("a named barrier is 1 to 15, of whole warps of the block");
  sync_warp("sync_threads");
  Meeting& barrier = current_block().barriers[id];
  if (!barrier.waiting.empty() && barrier.size != static_cast<size_t>(threads))
    fail("threads that should meet at a named barrier differ in how many they are");
  barrier.size = threads;
  meet(barrier, "sync_threads");
}

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
  if (open > 0 || bytes != 0) return;
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
  copy(to, size, [=] { std::memcpy(to, from, size); });
}

void Barrier::copy(void* to, int size, std::function<void()> land) {
  std::memset(to, 0xff, size);
  counted.push_back({std::move(land), size, this});
}

void begin_products() {
  Products& products = fibers[current]->products;
  if (!std::exchange(products.begun, true)) products.batches.emplace_back();
}

void start_product(float* sums, int n, std::function<void(float*)> add) {
  Products& products = fibers[current]->products;
  if (!products.begun) fail("a batch of products that has not begun");
  if (products.sums.try_emplace(sums, sums, sums + n).second) std::fill_n(sums, n, NAN);
  products.batches.back().push_back({sums, std::move(add)});
  if (below(2) == 0) {
    for (auto& batch : products.batches) products.add(batch);
  }
}

void end_products() {
  begin_products();  // an empty batch counts
  fibers[current]->products.begun = false;
}

void wait_products(int n) {
  Products& products = fibers[current]->products;
  auto& batches = products.batches;
  while (static_cast<int>(batches.size() - products.begun) > n) {
    products.add(batches.front());
    batches.erase(batches.begin());
  }
  std::erase_if(products.sums, [&](const auto& entry) {
    const auto& [to, values] = entry;
    if (products.has(to)) return false;
    std::copy(values.begin(), values.end(), to);
    return true;
  });
  // A product is the warpgroup's: when one thread has waited for it, it has read all that it reads.
  Meeting& group = warps[(current - threadIdx.x % kWarpgroup) / kWarp].group;
  group.size = kWarpgroup;
  meet(group, "wait_products");
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
