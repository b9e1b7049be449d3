// `doctor`: every rank looks at its host, rank 0 at the job, and all of them at the links between them.
#include <cstdio>
#include <cstdlib>
#include <set>

#include "pipeinfer/app/commands.h"
#include "pipeinfer/app/doctor_checks.h"
#include "pipeinfer/base/bytes.h"
#include "pipeinfer/base/clock.h"

namespace pipeinfer {

namespace {

const char* environment(const char* name) { return std::getenv(name); }

// What one rank knows.
struct RankReport {
  Findings findings;
  std::optional<RankResources> resources;  // nothing where the device cannot be used
  uint64_t weights_hash = 0;
  std::optional<Device> device;  // stays on the rank, as does the model
  std::optional<ModelConfig> model;

  std::vector<std::byte> serialize() const {
    ByteWriter out;
    out.put_all(findings.serialize());
    out.put_all(resources ? resources->serialize() : std::vector<std::byte>{});
    out.put(weights_hash);
    return out.take();
  }

  static RankReport parse(std::span<const std::byte> bytes) {
    ByteReader in(bytes, "report");
    RankReport report;
    report.findings = Findings::parse(in.get_all<std::byte>());
    if (const auto resources = in.get_all<std::byte>(); !resources.empty())
      report.resources = RankResources::parse(resources);
    report.weights_hash = in.get<uint64_t>();
    in.end();
    return report;
  }
};

RankReport examine_rank(App& app, const Command& command) {
  const RunConfig& run = command.config;
  const Job& job = app.job;
  RankReport report;
  Findings& findings = report.findings;
  examine_config(command, findings);
  const GpuFacts facts = gpu_facts(environment);
  examine_driver(facts, run.device, findings);
  findings.attempt("device", "use a node that has it, or give --device cpu", [&] {
    const Device device = open_device(run, job);
    report.resources = local_resources(job.hosts()[job.rank()], device);
    report.device = device;
    examine_device(*report.resources, device.index, facts.visible, findings);
  });
  report.model = examine_model(run, findings);
  report.weights_hash = examine_weights(run, report.model, findings);
  examine_reading(run.model_path, job.rank(), job.size(), findings);
  examine_output(run, job.rank(), findings);
  return report;
}

// Rank 0: of all ranks, in their order. One that does not answer has found nothing: it is lost, or its file system or
// driver hangs.
std::vector<RankReport> gather(App& app, RankReport own, double timeout_s, Findings& findings) {
  std::vector<RankReport> reports(app.job.size());
  reports[0] = std::move(own);
  std::set<int> missing;
  for (int r = 1; r < app.job.size(); ++r) missing.insert(r);
  const double deadline_s = now_s() + timeout_s;
  findings.attempt("launch", "look at that host: its file system or its driver may hang", [&] {
    app.watchdog.await([&] {
      while (const auto message = app.job.control().poll(Tag::hello)) {
        reports[message->from] = RankReport::parse(message->bytes);
        missing.erase(message->from);
      }
      if (!missing.empty() && now_s() > deadline_s)
        runtime_failure(cat("rank ", *missing.begin(), " (", app.job.hosts()[*missing.begin()],
                            ") did not say what it found within ", timeout_s, " s"));
      if (!missing.empty()) app.job.control().wait(0.01);
      return missing.empty();
    });
  });
  return reports;
}

// Whether all ranks shall measure links.
bool agree(App& app, bool measure) {
  if (!app.root()) return ByteReader(await_message(app, Tag::ready).bytes, "ready").get<bool>();
  for (int r = 1; r < app.job.size(); ++r) {
    ByteWriter out;
    out.put(measure);
    app.job.control().send(r, Tag::ready, out.take());
  }
  return measure;
}

ExitCode serve_doctor(App& app, const Command& command) {
  const RankReport own = examine_rank(app, command);
  app.job.control().send(0, Tag::hello, own.serialize());
  if (!agree(app, false)) return ExitCode::ok;
  try {
    measure_hops(app, command.config, *own.device);
  } catch (const Error& e) {
    usage_error(e.what());  // a link that does not work is a finding: rank 0 hears of it as a fault
  }
  return ExitCode::ok;
}

// Hosts may have copies of their own.
void examine_copies(const std::vector<RankReport>& reports, const std::vector<std::string>& hosts,
                    Findings& findings) {
  const uint64_t first = reports[0].weights_hash;
  for (size_t r = 1; r < reports.size(); ++r)
    if (const uint64_t other = reports[r].weights_hash; first != 0 && other != 0 && other != first)
      findings.fail("weights",
                    cat("rank ", r, " (", hosts[r], ") sees another checkpoint than rank 0 (", hosts[0], ")"),
                    "give all hosts the same model folder");
}

// What takes all ranks to know. Returns whether their devices go together.
bool examine_job(const RunConfig& run, const std::vector<RankReport>& reports, Findings& findings) {
  std::vector<RankResources> ranks;
  for (const RankReport& report : reports)
    if (report.resources) ranks.push_back(*report.resources);
  const bool complete = ranks.size() == reports.size();
  const auto not_checked = [&](const char* check) {
    findings.warn(check, "not checked, because of the FAIL above", "");
  };
  if (!complete) not_checked("gpus");
  const bool can_talk = complete && examine_ranks(ranks, run, findings);
  if (reports[0].model && complete) {
    examine_plan(*reports[0].model, run, ranks, findings);
  } else {
    for (const char* check : {"partition", "memory"})
      run.model_path.empty() ? findings.not_given(check, "--model") : not_checked(check);
  }
  return can_talk;
}

void examine_links(App& app, const RunConfig& run, const std::optional<Device>& device, bool can_talk,
                   Findings& findings) {
  const char* const check = "links";
  if (app.job.size() == 1) return findings.ok(check, "one rank: none are needed");
  if (!agree(app, can_talk)) return findings.warn(check, "not measured, because of the FAIL above", "");
  try {
    const auto kind = resolve_transport(transport_kind(run.transport), *device, app.job.size());
    examine_hops(measure_hops(app, run, *device), kind == TransportKind::nccl, findings);
  } catch (const Error& e) {
    app.watchdog.report(
        Error(ExitCode::usage, e.what()));  // the others must not wait; an earlier fault rules
    findings.fail(check, app.watchdog.reason(),
                  "see that the hosts reach each other (firewall, NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO)");
  }
}

}  // namespace

ExitCode doctor_command(App& app, const Command& command) {
  if (!app.root()) return serve_doctor(app, command);
  begin(app, true);
  const RunConfig& run = command.config;
  const std::vector<std::string>& hosts = app.job.hosts();
  Findings findings;
  examine_launch(environment, hosts, app.launch_error, findings);
  const std::vector<RankReport> reports = gather(app, examine_rank(app, command), run.timeout_s, findings);
  for (size_t r = 0; r < reports.size(); ++r) findings.add(static_cast<int>(r), reports[r].findings);
  examine_copies(reports, hosts, findings);
  examine_texts(run, reports[0].model, findings);
  const bool can_talk = examine_job(run, reports, findings);
  examine_links(app, run, reports[0].device, can_talk, findings);
  std::fputs((command.json ? findings.json(hosts) : findings.text(hosts)).c_str(), stdout);
  std::fflush(stdout);
  return findings.count(Verdict::fail) > 0 ? ExitCode::usage : ExitCode::ok;
}

}  // namespace pipeinfer
