// The program: from the command line to the exit code that all ranks agree on.
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>

#include "pipeinfer/app/commands.h"
#include "pipeinfer/base/clock.h"

namespace {

std::atomic<bool> stop_requested{false};  // set by signals, read by the watchdog

using namespace pipeinfer;

ExitCode dispatch(App& app, const Command& command) {
  switch (command.subcommand) {
    case Subcommand::run:
      return run_command(app, command);
    case Subcommand::bench:
      return bench_command(app, command);
    case Subcommand::describe:
      return describe_command(app, command);
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
    const bool served = command.subcommand == Subcommand::run || command.subcommand == Subcommand::bench;
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

// The deadline is needed before the command line can be refused.
double timeout_of(int argc, char** argv) {
  try {
    return parse_command(argc, argv, PIPEINFER_VERSION).config.timeout_s;
  } catch (const Error&) {
    return RunConfig{}.timeout_s;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const double started_s = now_s();
  for (int signal : {SIGTERM, SIGUSR1}) std::signal(signal, [](int) { stop_requested = true; });
  const double timeout_s = timeout_of(argc, argv);
  std::unique_ptr<Job> job;
  try {
    job = start_job(timeout_s);
  } catch (const Error& e) {
    std::fprintf(stderr, "pipeinfer: %s\n", e.what());
    return static_cast<int>(e.code());
  }
  Log log(job->rank());
  Watchdog::Farewell farewell;
  {
    Watchdog watchdog(*job, log, stop_requested, timeout_s);
    App app{*job, log, watchdog, started_s};
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
