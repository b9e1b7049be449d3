#include <cstdio>
#include <nlohmann/json.hpp>

#include "pipeinfer/app/commands.h"

namespace pipeinfer {

RunPlan describe_plan(App& app, const Command& command, const ModelConfig& model) {
  const RunConfig& run = command.config;
  const RankResources own = local_resources(app.job.hosts()[0], open_device(run, app.job));
  const int64_t n = run.pipeline_parallel_size > 0 ? run.pipeline_parallel_size : app.job.size();
  std::vector<RankResources> ranks(n, own);
  // This job's ranks share a host's memory; others are thought of as having a device each, as GPUs are.
  const bool job = n == app.job.size() && own.kind == DeviceKind::cpu;
  for (int64_t r = 0; r < n; ++r) ranks[r].host = job ? app.job.hosts()[r] : cat("rank ", r);
  return plan_run(model, run, ranks);
}

ExitCode describe_command(App& app, const Command& command) {
  if (!app.root()) return ExitCode::ok;
  const ModelConfig model = load_model_config(command.config.model_path);
  const RunPlan plan = describe_plan(app, command, model);
  if (!command.json) {
    std::fputs(plan_text(model, plan).c_str(), stdout);
    return ExitCode::ok;
  }
  nlohmann::json stages = nlohmann::json::array();
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StageMemory& stage = plan.stages[s];
    stages.push_back({{"rank", s},
                      {"first_layer", plan.layout.layers[s]},
                      {"last_layer", plan.layout.layers[s + 1] - 1},
                      {"available_bytes", stage.available},
                      {"weight_bytes", stage.weights},
                      {"workspace_bytes", stage.workspace},
                      {"kv_block_bytes", stage.kv_block},
                      {"kv_bytes", stage.kv_pool}});
  }
  const SchedulerConfig& scheduler = plan.layout.scheduler;
  const nlohmann::json all = {{"model", command.config.name()},
                              {"parameters", model.total_parameters()},
                              {"precision", dtype_name(plan.dtype)},
                              {"context", model.context()},
                              {"lanes", scheduler.lanes},
                              {"kv_blocks", scheduler.blocks},
                              {"kv_tokens", int64_t{scheduler.blocks} * scheduler.block_size},
                              {"stages", stages}};
  std::printf("%s\n", all.dump(2).c_str());
  return ExitCode::ok;
}

}  // namespace pipeinfer
