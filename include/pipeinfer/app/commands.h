// The subcommands. Every rank calls them; each returns the rank's exit code or throws Error.
#pragma once

#include "pipeinfer/app/cli.h"
#include "pipeinfer/app/engine.h"

namespace pipeinfer {

ExitCode run_command(App& app, const Command& command);
ExitCode bench_command(App& app, const Command& command);
ExitCode describe_command(App& app, const Command& command);
ExitCode doctor_command(App& app, const Command& command);

/// The plan of a run on `command.config.pipeline_parallel_size` (or the job's) ranks like this one.
RunPlan describe_plan(App& app, const Command& command, const ModelConfig& model);

}  // namespace pipeinfer
