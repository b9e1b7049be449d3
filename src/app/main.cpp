// The program: from the command line to the exit code that all ranks agree on.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <thread>

#include "pipeinfer/app/commands.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/comm/launch.h"
#include "pipeinfer/comm/local.h"

namespace {

std::atomic<bool> stop_requested{false};  // set by signals, read by the watchdog

// Called before the constructors of LibTorch's libraries, which take most of the time until main: a signal that early
// stops resumably, too.
void catch_signals(int, char**, char**) {
  for (int signal : {SIGTERM, SIGUSR1}) std::signal(signal, [](int) { stop_requested = true; });
  std::signal(SIGXFSZ, SIG_IGN);  // a file at its size limit is a write error like a full disk
  std::signal(SIGPIPE, SIG_IGN);  // so is a rank that died, over TCP, or a reader that left
}
[[gnu::section(".preinit_array"), gnu::used]] void (*before_libraries)(int, char**, char**) = catch_signals;

using namespace pipeinfer;

ExitCode dispatch(App& app, const Command& command) {
  switch (command.subcommand) {
    case Subcommand::run:
      return run_command(app, command);
    case Subcommand::bench:
      return bench_command(app, command);
    case Subcommand::describe:
      return describe_command(app, command);
    case Subcommand::doctor:
      return doctor_command(app, command);
    case Subcommand::help:
      break;
  }
  if (app.root()) std::fputs(command.text.c_str(), stdout);
  return ExitCode::ok;
}

// Everything that a rank does between its start and its farewell; every failure is reported to the watchdog.
ExitCode work(App& app, int argc, char** argv) {
  try {
    std::optional<Error> refused;
    Command command;
    try {
      command = parse_command(argc, argv, PIPEINFER_VERSION);
    } catch (const Error& e) {
      refused = e;
    }
    const bool served = command.subcommand == Subcommand::run || command.subcommand == Subcommand::bench ||
                        command.subcommand == Subcommand::doctor;
    if (!app.root() && !begin(app)) return ExitCode::ok;  // what is wrong for all, rank 0 says
    if (refused) throw *refused;
    if (!served && app.root()) begin(app, false);
    return dispatch(app, command);
  } catch (const Error& e) {
    return app.watchdog.report(e);
  } catch (const std::bad_alloc&) {
    return app.watchdog.report(Error(ExitCode::failed, "out of host memory"));
  } catch (const std::exception& e) {
    return app.watchdog.report(Error(ExitCode::failed, e.what()));
  }
}

// What is needed of the command line before it can be refused.
Command first_look(int argc, char** argv) {
  try {
    return parse_command(argc, argv, PIPEINFER_VERSION);
  } catch (const Error&) {
    return {};
  }
}

// Where no job came about, every task sees the same, and the first one says it.
bool is_first_task() {
  const auto launch = find_launch([](const char* name) { return std::getenv(name); });
  return !launch || launch->rank == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const double started_s = now_s();
  const Command command = first_look(argc, argv);
  const double timeout_s = command.config.timeout_s;
  const bool doctor = command.subcommand == Subcommand::doctor;
  std::unique_ptr<Job> job;
  std::string launch_error;
  try {
    job = start_job(timeout_s);
  } catch (const Error& e) {
    if (!is_first_task()) {
      if (doctor) return 0;  // the first task's code becomes the launcher's
      std::this_thread::sleep_for(
          std::chrono::seconds(1));  // the launcher must not take that one down before
      return static_cast<int>(e.code());
    }
    if (!doctor) {
      std::fprintf(stderr, "pipeinfer: %s\n", e.what());
      return static_cast<int>(e.code());
    }
    launch_error = e.what();
    job = LocalWorld(1).job(0);
  }
  Log log(job->rank());
  Watchdog::Farewell farewell;
  {
    Watchdog watchdog(*job, log, stop_requested, timeout_s);
    App app{*job, log, watchdog, started_s, launch_error};
    const ExitCode code = work(app, argc, argv);
    farewell = watchdog.leave(code);
  }
  log.flush();
  std::fflush(nullptr);
  const int code = static_cast<int>(farewell.code);
  if (!farewell.orderly) job->abort(code);
  try {
    job->finalize(timeout_s);
  } catch (const Error& e) {
    std::fprintf(stderr, "pipeinfer: %s\n", e.what());
    job->abort(code == 0 ? static_cast<int>(ExitCode::failed) : code);
  }
  return code;
}
