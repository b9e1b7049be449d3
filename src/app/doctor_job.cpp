#include <map>

#include "pipeinfer/app/doctor_checks.h"
#include "pipeinfer/comm/launch.h"
#include "pipeinfer/comm/nccl.h"

namespace pipeinfer {

namespace {

// "node1", or "2 hosts (node1: 4, node2: 4)".
std::string hosts_text(const std::vector<std::string>& hosts) {
  std::map<std::string, int> count;
  for (const std::string& host : hosts) ++count[host];
  if (count.size() == 1) return hosts[0];
  std::string text;
  for (const auto& [host, n] : count) text += cat(text.empty() ? "" : ", ", host, ": ", n);
  return cat(count.size(), " hosts (", text, ")");
}

}  // namespace

void examine_launch(const Environment& variable, const std::vector<std::string>& hosts,
                    const std::string& launch_error, Findings& findings) {
  const char* const check = "launch";
  if (!launch_error.empty()) return findings.fail(check, launch_error, "");  // the sentence says what to do
  const auto launch = find_launch(variable);
  const auto n = static_cast<long long>(hosts.size());
  const std::string text = cat(counted(n, "rank"), " on ", hosts_text(hosts), ", started ",
                               launch ? "by " + launch->launcher : "alone");
  const char* const tasks = variable("SLURM_JOB_ID") ? variable("SLURM_NTASKS") : nullptr;
  if (tasks && tasks != std::to_string(n))
    findings.warn(check, cat(text, ", in a Slurm job of ", tasks, " tasks"),
                  "start pipeinfer with srun --mpi=pmix, or with mpirun inside the allocation");
  else
    findings.ok(check, text);
}

bool examine_ranks(const std::vector<RankResources>& ranks, const RunConfig& run, Findings& findings) {
  const char* const check = "gpus";
  std::vector<std::string> gpus;
  size_t n_gpus = 0;
  for (const RankResources& rank : ranks) {
    const bool cuda = rank.kind == DeviceKind::cuda;
    n_gpus += cuda;
    gpus.push_back(cuda ? cat(rank.host, " ", rank.device.pci_bus_id) : "");
  }
  if (n_gpus == 0) return findings.ok(check, "no rank uses a GPU"), true;
  if (n_gpus < ranks.size()) {
    std::string without;
    for (size_t r = 0; r < ranks.size(); ++r)
      if (gpus[r].empty()) without += cat(without.empty() ? "" : ", ", r, " (", ranks[r].host, ")");
    findings.fail(check, cat("there is no GPU for rank ", without, ", the other ranks have one"),
                  "start only where GPUs are, one rank each, or give --device cpu");
    return false;
  }
  return findings.attempt(check, "", [&] {
    if (run.transport != "mpi") refuse_shared_gpus(gpus);
    findings.ok(check, run.transport == "mpi" ? "every rank has a GPU" : "every rank has a GPU of its own");
  });
}

void examine_plan(const ModelConfig& model, const RunConfig& run, const std::vector<RankResources>& ranks,
                  Findings& findings) {
  const int n = static_cast<int>(ranks.size());
  const bool adds_up =
      findings.attempt("partition", "start as many ranks as stages, or correct --pp and --partition", [&] {
        check_stages(model, run, n);
        findings.ok("partition", cat(counted(model.n_layers, "layer"), " over ", counted(n, "stage")));
      });
  if (!adds_up) return findings.warn("memory", "not checked, because of the FAIL above", "");
  const char* const advice =
      "use more ranks or devices with more memory, or less: --precision fp16, --kv-blocks, --batch-size, "
      "--prefill-chunk";
  findings.attempt("memory", advice, [&] {
    const RunPlan plan = plan_run(model, run, ranks);
    for (int s = 0; s < n; ++s) {
      const StageMemory& stage = plan.stages[s];
      const auto size = [](int64_t bytes) { return bytes_text(static_cast<double>(bytes)); };
      findings.ok("memory", cat("stage ", s, " (", ranks[s].host, "): layers ", plan.layout.layers[s], "-",
                                plan.layout.layers[s + 1] - 1, " in ", dtype_name(plan.dtype), ", weights ",
                                size(stage.weights), " + workspace ", size(stage.workspace), " + KV cache ",
                                size(stage.kv_pool), " of ", size(stage.available), " free"));
    }
    const SchedulerConfig& scheduler = plan.layout.scheduler;
    const int64_t tokens = int64_t{scheduler.blocks} * scheduler.block_size;
    const std::string text = cat("KV capacity: ", tokens, " tokens, ", tokens / scheduler.context,
                                 " sequences of the whole context (", scheduler.context, ")");
    tokens < scheduler.context
        ? findings.warn("memory", text, "prompts that need more are rejected: give more KV blocks")
        : findings.ok("memory", text);
  });
}

}  // namespace pipeinfer
