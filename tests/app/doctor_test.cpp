// What doctor says of hosts and jobs that this machine is not: planted facts. The program itself: doctor_test.py.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "pipeinfer/app/doctor_checks.h"
#include "pipeinfer/comm/local.h"

namespace pipeinfer {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

/// The only finding, which must be this one.
void expect_finding(const Findings& findings, Verdict verdict, const std::string& text,
                    const std::string& advice) {
  ASSERT_EQ(findings.all().size(), 1u) << findings.text({"node"});
  const Finding& finding = findings.all()[0];
  EXPECT_EQ(finding.verdict, verdict) << finding.text;
  EXPECT_NE(finding.text.find(text), std::string::npos) << finding.text;
  EXPECT_NE(finding.advice.find(advice), std::string::npos) << finding.advice;
}

RankResources gpu(const std::string& host, const std::string& pci, int64_t free_bytes = 70 * kGiB) {
  RankResources rank;
  rank.host = host;
  rank.kind = DeviceKind::cuda;
  rank.device.name = "GPU";
  rank.device.pci_bus_id = pci;
  rank.device.free_bytes = free_bytes;
  rank.device.total_bytes = 80 * kGiB;
  rank.device.compute_major = 9;
  return rank;
}

GpuFacts gpu_host() {
  GpuFacts facts;
  facts.built = true;
  facts.cuda = {13000, 13010};
  facts.nccl = "2.28.9";
  facts.driver = "580.65.06";
  facts.visible = 1;
  return facts;
}

Findings driver(const GpuFacts& facts, const std::string& device) {
  Findings findings;
  examine_driver(facts, device, findings);
  return findings;
}

TEST(DoctorFindings, TheSameOfSeveralRanksIsOneLine) {
  Findings common, odd, all;
  common.ok("model", "fine");
  common.ok("output", "fine");
  odd.fail("model", "not\nthere", "copy it");
  odd.ok("output", "fine");
  all.ok("launch", "3 ranks");
  all.add(0, common);
  all.add(1, Findings::parse(odd.serialize()));
  all.add(2, common);
  const std::vector<std::string> hosts = {"a", "b", "c"};
  EXPECT_EQ(all.text(hosts),
            "OK    launch     3 ranks\n"
            "OK    model      ranks 0, 2: fine\n"
            "FAIL  model      rank 1 (b): not there -> copy it\n"
            "OK    output     fine\n"
            "not fit to run: 3 OK, 0 WARN, 1 FAIL\n");
  const auto json = nlohmann::json::parse(all.json(hosts));
  EXPECT_EQ(json.at("fail"), 1);
  EXPECT_EQ(json.at("findings").at(2).at("ranks"), nlohmann::json({1}));
  EXPECT_EQ(json.at("findings").at(2).at("advice"), "copy it");
}

TEST(DoctorFindings, AStepThatThrowsIsAFail) {
  Findings findings;
  EXPECT_FALSE(findings.attempt("disk", "buy one", [] { usage_error("no disk"); }));
  expect_finding(findings, Verdict::fail, "no disk", "buy one");
  EXPECT_TRUE(findings.attempt("disk", "buy one", [] {}));
  EXPECT_EQ(findings.all().size(), 1u);
}

TEST(DoctorLaunch, TasksOfSlurmThatDidNotStart) {
  std::map<std::string, std::string> environment = {{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "4"}};
  const auto variable = [&](const char* name) {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  };
  Findings alone, step;
  examine_launch(variable, {"node1"}, "", alone);
  expect_finding(alone, Verdict::warn, "1 rank on node1, started alone, in a Slurm job of 4 tasks",
                 "srun --mpi=pmix");
  environment.insert({{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "0"}, {"PMIX_RANK", "0"}});
  examine_launch(variable, {"node1", "node1", "node2", "node2"}, "", step);
  expect_finding(step, Verdict::ok, "4 ranks on 2 hosts (node1: 2, node2: 2), started by Slurm", "");
}

TEST(DoctorGpus, TwoRanksOnOneGpu) {
  const std::vector<RankResources> ranks = {gpu("node1", "17"), gpu("node1", "18"), gpu("node1", "17")};
  Findings nccl, mpi, own;
  EXPECT_FALSE(examine_ranks(ranks, {}, nccl));
  expect_finding(nccl, Verdict::fail, "ranks 0 and 2 share one GPU (node1 17)", "");
  RunConfig staged;
  staged.transport = "mpi";
  EXPECT_TRUE(examine_ranks(ranks, staged, mpi));
  expect_finding(mpi, Verdict::ok, "every rank has a GPU", "");
  EXPECT_TRUE(examine_ranks({gpu("node1", "17"), gpu("node2", "17")}, {}, own));
  expect_finding(own, Verdict::ok, "every rank has a GPU of its own", "");
}

TEST(DoctorGpus, ARankWithoutOne) {
  RankResources cpu;
  cpu.host = "node2";
  Findings findings;
  EXPECT_FALSE(examine_ranks({gpu("node1", "17"), cpu}, {}, findings));
  expect_finding(findings, Verdict::fail, "no GPU for rank 1 (node2)", "--device cpu");
}

TEST(DoctorDriver, AContainerWithoutNv) {
  GpuFacts facts = gpu_host();
  expect_finding(driver(facts, "auto"), Verdict::ok,
                 "CUDA 13.0 and NCCL 2.28.9, the NVIDIA driver is 580.65.06", "");
  facts.visible = facts.cuda.driver = 0;
  facts.container = "Apptainer";
  expect_finding(driver(facts, "cuda"), Verdict::fail, "in Apptainer), no GPU can be seen", "--nv");
  expect_finding(driver(facts, "auto"), Verdict::warn, "no GPU can be seen", "--nv");
  expect_finding(driver(facts, "cpu"), Verdict::ok, "580.65.06", "");
}

TEST(DoctorDriver, OtherReasonsWhyNoGpuIsSeen) {
  GpuFacts facts = gpu_host();
  facts.visible = 0;
  facts.cuda_visible_devices = "7";
  expect_finding(driver(facts, "cuda"), Verdict::fail, "CUDA_VISIBLE_DEVICES=7", "--gpus-per-task");
  facts.cuda.driver = 12080;
  expect_finding(driver(facts, "cuda"), Verdict::fail, "serves only CUDA 12.8", "update the driver");
  facts.built = false;
  expect_finding(driver(facts, "auto"), Verdict::warn, "this build has no CUDA", "--preset gpu");
  facts.driver = "";
  expect_finding(driver(facts, "auto"), Verdict::ok, "no NVIDIA driver is loaded", "");
  expect_finding(driver(facts, "cuda"), Verdict::fail, "no NVIDIA driver is loaded", "--device cpu");
}

TEST(DoctorDevice, TooOldOrTaken) {
  RankResources old = gpu("node1", "17");
  old.device.compute_major = 7;
  Findings too_old, taken, good;
  examine_device(old, 0, 2, too_old);
  expect_finding(too_old, Verdict::fail, "compute capability 7.0", "7.5");
  examine_device(gpu("node1", "17", kGiB), 1, 2, taken);
  expect_finding(taken, Verdict::warn,
                 "GPU 1 of 2, GPU at 17, compute capability 9.0, 1.0 GiB of 80.0 GiB free", "nvidia-smi");
  examine_device(gpu("node1", "17"), 0, 1, good);
  expect_finding(good, Verdict::ok, "70.0 GiB of 80.0 GiB free", "");
}

TEST(DoctorPlan, TooSmallAGpu) {
  const ModelConfig model = model_shape("openllama-3b");
  RunConfig halves;
  halves.partition = {13, 13};
  Findings small, fits;
  examine_plan(model, halves, {gpu("node1", "17"), gpu("node2", "17", kGiB)}, small);
  ASSERT_EQ(small.all().size(), 2u) << small.text({"a", "b"});
  EXPECT_EQ(small.all()[0].verdict, Verdict::ok);
  EXPECT_EQ(small.all()[1].verdict, Verdict::fail);
  EXPECT_NE(small.all()[1].text.find("stage 1 does not fit on rank 1 (node2)"), std::string::npos)
      << small.all()[1].text;
  EXPECT_NE(small.all()[1].advice.find("more memory"), std::string::npos);
  examine_plan(model, halves, {gpu("node1", "17"), gpu("node2", "17")}, fits);
  EXPECT_EQ(fits.count(Verdict::ok), 4) << fits.text({"a", "b"});
  EXPECT_EQ(fits.all().size(), 4u);
}

TEST(DoctorHops, SlowOnesAreNamed) {
  const std::vector<Hop> hops = {{0, 1, 20e-6, 300e9}, {1, 0, 20e-6, 0.1e9}};
  Findings nccl, mpi;
  examine_hops(hops, true, nccl);
  EXPECT_EQ(nccl.all()[0].verdict, Verdict::ok);
  EXPECT_EQ(nccl.all()[1].verdict, Verdict::warn);
  EXPECT_EQ(nccl.all()[1].text, "tokens return from rank 1 to rank 0 over NCCL: 20 us, 0.10 GB/s");
  examine_hops(hops, false, mpi);
  EXPECT_EQ(mpi.count(Verdict::ok), 2);
}

/// measure_hops with ranks as threads: what each rank got, or why it ended.
struct Measured {
  std::vector<Hop> hops;
  std::string error;
};
std::vector<Measured> measure(int n, double timeout_s, int silent) {
  LocalWorld world(n);
  std::atomic<bool> stop{false};
  std::vector<Measured> measured(n);
  std::vector<std::thread> threads;
  if (silent >= 0) world.silence(silent);
  for (int r = 0; r < n; ++r)
    threads.emplace_back([&, r] {
      const auto job = world.job(r);
      Log log(r);
      Watchdog watchdog(*job, log, stop, timeout_s);
      App app{*job, log, watchdog, 0};
      RunConfig run;
      run.timeout_s = timeout_s;
      try {
        measured[r].hops = measure_hops(app, run, Device{});
      } catch (const Error& e) {
        measured[r].error = watchdog.reason().empty() ? e.what() : watchdog.reason();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return measured;
}

TEST(DoctorHops, RanksAsThreadsMeasureThem) {
  const auto measured = measure(3, 60, -1);
  for (const Measured& rank : measured) EXPECT_EQ(rank.error, "");
  ASSERT_EQ(measured[0].hops.size(), 3u);
  for (int r = 0; r < 3; ++r) {
    const Hop& hop = measured[0].hops[r];
    EXPECT_EQ(hop.from, r);
    EXPECT_EQ(hop.to, (r + 1) % 3);
    EXPECT_GT(hop.latency_s, 0);
    EXPECT_GT(hop.bytes_per_s, 0);
  }
}

TEST(DoctorHops, ASilentRankEndsThem) {
  const auto measured = measure(2, 1, 1);
  EXPECT_NE(measured[0].error.find("rank 1"), std::string::npos) << measured[0].error;
}

}  // namespace
}  // namespace pipeinfer
