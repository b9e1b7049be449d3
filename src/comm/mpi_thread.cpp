#include "mpi_thread.h"

#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "launcher_abort.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {
namespace {

std::chrono::duration<double> seconds(double s) { return std::chrono::duration<double>(s); }

[[noreturn]] void end_process(const std::string& message) {
  std::fprintf(stderr, "pipeinfer: %s\n", message.c_str());
  std::fflush(stderr);
  launcher_abort(1);
}

/// What a rank tells the others of its process.
struct Identity {
  char host[MPI_MAX_PROCESSOR_NAME] = {};
  char space[128] = {};  ///< equal: the same host and PID namespace, so that `pid` means the same process
  pid_t pid = 0;
};

Identity own_identity() {
  Identity own;
  int length = 0;
  MPI_Get_processor_name(own.host, &length);
  own.pid = getpid();
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  struct stat pids = {};
  if (stat("/proc/self/ns/pid", &pids) != 0 || boot.empty()) return own;
  std::snprintf(own.space, sizeof own.space, "%s %llu", boot.c_str(),
                static_cast<unsigned long long>(pids.st_ino));
  return own;
}

}  // namespace

MpiThread::MpiThread(double timeout_s, Handlers handlers)
    : timeout_s_(timeout_s), handlers_(std::move(handlers)) {
  // More ranks than cores: Open MPI's own waits (at the start and the end) should give the core away.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  thread_ = std::thread([this] { main(); });
  std::unique_lock lock(mutex_);
  const bool answered =
      changed_.wait_for(lock, seconds(timeout_s), [&] { return started_ || !failure_.empty(); });
  if (!answered) {
    end_process(cat("MPI_Init did not finish within ", timeout_s,
                    " s: some rank did not start, or the ranks cannot reach each other"));
  }
  if (!failure_.empty()) end_process(failure_);
}

MpiThread::~MpiThread() {
  if (thread_.joinable()) abort(1);
}

void MpiThread::post(Parcel parcel) {
  std::lock_guard lock(mutex_);
  posted_.push_back(std::move(parcel));
  new_orders_ = true;
  ordered_.notify_one();
}

void MpiThread::show_life(Phase phase, uint64_t progress) {
  phase_ = phase;
  progress_ = progress;
}

void MpiThread::receive_into(std::shared_ptr<StagingPool> pool) {
  std::lock_guard lock(mutex_);
  new_tensor_pool_ = std::move(pool);
}

void MpiThread::finalize(double timeout_s) {
  std::unique_lock lock(mutex_);
  leave_ordered_ = new_orders_ = true;
  ordered_.notify_one();
  // Rank 0 hears all others: it has the first word. Time in which this process was stopped is nobody's fault.
  const double patience_s = timeout_s + (place_.rank == 0 ? 0.5 : 3);
  double end_s = now_s() + patience_s;
  for (double looked_s = now_s();
       !changed_.wait_for(lock, seconds(0.05), [&] { return ended_ || !failure_.empty(); });) {
    const double now = now_s();
    if (now - looked_s > timeout_s / 4) end_s += now - looked_s;
    looked_s = now;
    if (now > end_s)
      runtime_failure(cat("MPI_Finalize did not finish within ", timeout_s, " s: ", missing(patience_s)));
  }
  if (!failure_.empty()) runtime_failure(failure_);
  lock.unlock();
  thread_.join();
}

void MpiThread::abort(int exit_code) noexcept {
  try {
    std::unique_lock lock(mutex_);
    abort_ordered_ = exit_code;
    new_orders_ = true;
    ordered_.notify_one();
    if (ended_) _exit(exit_code);
    changed_.wait_for(lock, seconds(2), [] { return false; });  // MPI_Abort ends the process
  } catch (...) {
  }
  launcher_abort(exit_code);  // the MPI thread hangs in a call
}

// Who has not been there for most of that time, as far as this rank can tell. Signs of life go on until every rank wants
// to leave, and one that takes the job down has shown them until then.
std::string MpiThread::missing(double waited_s) const {
  for (int peer = 0; leaving_ <= Leaving::wait_for_all && peer < place_.size; peer++) {
    const bool heard = (place_.rank == 0) != (peer == 0);
    if (heard && lives_->at(peer).silent_s > 0.75 * waited_s)
      return cat("rank ", peer, " (", place_.hosts[peer], ") is lost");
  }
  return "some rank does not leave";
}

void MpiThread::main() {
  try {
    start();
    {
      std::lock_guard lock(mutex_);
      started_ = true;
      changed_.notify_all();
    }
    loop();
    for (MPI_Comm& comm : comms_) check(MPI_Comm_free(&comm), "MPI_Comm_free", -1);
    check(MPI_Finalize(), "MPI_Finalize", -1);
    std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
    return;
  } catch (const std::exception& error) {
    {
      std::lock_guard lock(mutex_);
      failure_ = error.what();
      changed_.notify_all();
    }
    handlers_.failed(error.what());
  }
  std::unique_lock lock(mutex_);
  ordered_.wait(lock, [&] { return abort_ordered_.has_value(); });
  MPI_Abort(MPI_COMM_WORLD, *abort_ordered_);
}

void MpiThread::start() {
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread", -1);
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", -1);
  if (provided < MPI_THREAD_FUNNELED)
    runtime_failure("this MPI library does not allow MPI beside other threads");
  MPI_Comm_rank(MPI_COMM_WORLD, &place_.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &place_.size);
  for (MPI_Comm& comm : comms_) check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup", -1);

  MPI_Comm host;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, place_.rank, MPI_INFO_NULL, &host),
        "MPI_Comm_split_type", -1);
  MPI_Comm_rank(host, &place_.local_rank);
  MPI_Comm_size(host, &place_.local_size);
  check(MPI_Comm_free(&host), "MPI_Comm_free", -1);

  find_peers();
  lives_ = std::make_unique<LifeTable>(place_.size, timeout_s_ / 4);
  control_pool_ = std::make_shared<StagingPool>(Device{});
  tensor_pool_ = control_pool_;
  for (int peer = 0; peer < place_.size; peer++)
    life_unsent_.push_back(std::make_shared<std::atomic<int>>(0));
}

void MpiThread::find_peers() {
  const Identity own = own_identity();
  std::vector<Identity> all(place_.size);
  check(MPI_Allgather(&own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, MPI_COMM_WORLD),
        "MPI_Allgather", -1);
  for (const Identity& peer : all) {
    const bool visible = own.space[0] != 0 && std::string_view(peer.host) == own.host &&
                         std::string_view(peer.space) == own.space;
    place_.hosts.emplace_back(peer.host);
    place_.pids.push_back(visible ? peer.pid : 0);
  }
}

void MpiThread::check(int code, const char* call, int peer) const {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  runtime_failure(cat(call,
                      peer < 0 ? cat(" failed on rank ", place_.rank)
                               : cat(" between ranks ", place_.rank, " and ", peer, " failed"),
                      ": ", text.data()));
}

}  // namespace pipeinfer
