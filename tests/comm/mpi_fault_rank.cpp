// One rank of the jobs that mpi_fault_test.cpp starts: what it does is its argument.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "harness.h"

namespace pipeinfer {
namespace {

void say(const std::string& text) {
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}

void rest(double s) { std::this_thread::sleep_for(std::chrono::duration<double>(s)); }

/// Rank 1 stops as a whole. Rank 0 notices, and lets it go on; then nobody blames anybody.
int stopped(Job& job) {
  Control& control = job.control();
  if (job.rank() == 1) {
    const pid_t pid = getpid();
    control.send(0, Tag::hello, std::as_bytes(std::span(&pid, 1)));
    if (!eventually([&] { return control.flushed(); })) return 1;
    kill(pid, SIGSTOP);
    const double silent_s = control.life(0).silent_s;
    if (silent_s > 1) say(cat("rank 1 blames rank 0 for ", silent_s, " s"));
    take(control, Tag::finish);
  } else {
    pid_t pid;
    std::memcpy(&pid, take(control, Tag::hello).bytes.data(), sizeof pid);
    if (eventually([&] { return control.life(1).silent_s > 1.5; })) say("rank 1 is silent");
    kill(pid, SIGCONT);
    if (eventually([&] { return control.life(1).silent_s < 0.5; })) say("rank 1 is back");
    control.send(1, Tag::finish, {});
  }
  job.finalize(10);
  return 0;
}

/// Rank 1 dies without a word (and mpirun was told not to care); rank 0 notices and ends the job.
void killed(Job& job) {
  if (job.rank() == 1) kill(getpid(), SIGKILL);
  if (eventually([&] { return job.control().life(1).silent_s > 1.5; })) say("rank 1 is silent");
  job.abort(1);
}

/// Rank 1 ends the job while rank 0 waits for it.
int aborted(Job& job) {
  if (job.rank() == 1) job.abort(1);
  auto transport = job.host_transport(Device{});
  Stream stream(Device{});
  std::byte byte;
  transport->connect(Channel::hidden, 1, 0).recv(&byte, 1, stream);
  say("rank 0 received something");
  return 0;
}

/// Rank 1 does not leave.
void staying(Job& job) {
  if (job.rank() == 1) rest(60);
  try {
    job.finalize(1);
  } catch (const Error& error) {
    say(error.what());
  }
  job.abort(1);
}

int all_exit_with_3(Job& job) {
  job.finalize(10);
  return 3;
}

int place(Job& job) {
  say(cat("rank ", job.rank(), " of ", job.size(), ", local ", job.local_rank(), " of ", job.local_size(),
          ", hosts ", job.hosts().size()));
  job.finalize(10);
  return 0;
}

}  // namespace
}  // namespace pipeinfer

int main(int, char** argv) {
  using namespace pipeinfer;
  const std::string what = argv[1];
  if (what == "absent" && std::string(std::getenv("OMPI_COMM_WORLD_RANK")) == "1") rest(60);
  std::unique_ptr<Job> job;
  try {
    job = start_job(2);
  } catch (const Error& error) {
    say(error.what());
    return static_cast<int>(error.code());
  }
  if (what == "stopped") return stopped(*job);
  if (what == "killed") killed(*job);
  if (what == "aborted") return aborted(*job);
  if (what == "staying") staying(*job);
  if (what == "all_exit_with_3") return all_exit_with_3(*job);
  if (what == "place") return place(*job);
  return 99;
}
