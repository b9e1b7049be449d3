#include "pipeinfer/app/engine.h"

#include <optional>

#include "pipeinfer/base/bytes.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/checkpoint/checkpoint.h"
#include "pipeinfer/comm/nccl.h"
#include "pipeinfer/trace/range.h"

namespace pipeinfer {

TransportKind transport_kind(const std::string& name) {
  if (name == "nccl") return TransportKind::nccl;
  return name == "mpi" ? TransportKind::mpi : TransportKind::automatic;
}

Message await_message(App& app, Tag tag) {
  std::optional<Message> message;
  app.watchdog.await([&] {
    message = app.job.control().poll(tag);
    if (!message) app.job.control().wait(0.01);
    return message.has_value();
  });
  return std::move(*message);
}

bool begin(App& app, bool serve) {
  if (!app.root()) return ByteReader(await_message(app, Tag::begin).bytes, "begin").get<bool>();
  ByteWriter out;
  out.put(serve);
  const auto bytes = out.take();
  for (int r = 1; r < app.job.size(); ++r) app.job.control().send(r, Tag::begin, bytes);
  return serve;
}

Device open_device(const RunConfig& run, const Job& job) {
  const int n_gpus = run.device == "cpu" ? 0 : cuda_device_count();
  if (run.device == "cuda" && n_gpus == 0)
    usage_error(cat("--device cuda: no GPU is visible on ", job.hosts()[job.rank()]));
  Device device;
  if (n_gpus > 0)
    device = {DeviceKind::cuda, job.local_rank() % n_gpus};  // sharing is refused where it matters
  use_device(device);
  return device;
}

LinksGuard::LinksGuard(Watchdog& watchdog, Transport& transport)
    : watchdog_(watchdog), transport_(transport) {
  watchdog_.on_fault([this] { transport_.abort(); });
}

LinksGuard::~LinksGuard() {
  watchdog_.on_fault({});
  if (!closed_) transport_.abort();
}

Engine::Engine(App& app, const RunConfig& run, const ModelConfig& model, const std::string& model_folder,
               bool want_top)
    : app_(app), timeout_s_(run.timeout_s), device_(open_device(run, app.job)) {
  app_.watchdog.enter(Phase::loading);
  agree(run, model, want_top);
  transport_ = make_transport(transport_kind(run.transport), device_, app_.job, timeout_s_);
  links_ = std::make_unique<LinksGuard>(app_.watchdog, *transport_);
  rank_.reset(new RankContext{app_.job, app_.log, app_.watchdog, *transport_, recorder_, device_});

  std::optional<Range> range("load");
  const double begin_s = now_s();
  LoadFigures own;
  StageOptions options = plan_.stage_options(app_.job.rank());
  options.cuda_graphs = run.cuda_graphs;
  options.reference_kernels = run.reference_kernels;
  if (model_folder.empty()) {
    stage_ = std::make_unique<LlamaStage>(model, options, RandomWeights{}, device_);
  } else {
    const Checkpoint checkpoint(model_folder);
    stage_ = std::make_unique<LlamaStage>(model, options, checkpoint, device_);
    own.bytes = checkpoint.bytes_read();
  }
  own.seconds = now_s() - begin_s;
  range.reset();
  app_.log.info("loaded layers ", plan_.layout.layers[app_.job.rank()], " to ",
                plan_.layout.layers[app_.job.rank() + 1] - 1, " in ", own.seconds, " s, ", own.bytes >> 20,
                " MiB read");
  const double loaded_s = now_s();
  const std::string graphs = stage_->warm_up();
  own.warm_up_s = now_s() - loaded_s;
  app_.log.info("warmed up in ", own.warm_up_s, " s: ", graphs);
  worker_ = std::make_unique<StageWorker>(*rank_, plan_.layout, *stage_);
  worker_->connect();
  gather_loads(own);
}

// hello up, layout down.
void Engine::agree(const RunConfig& run, const ModelConfig& model, bool want_top) {
  Control& control = app_.job.control();
  RankResources own = local_resources(app_.job.hosts()[app_.job.rank()], device_);
  if (!app_.root()) {
    control.send(0, Tag::hello, own.serialize());
    const Message message = await_message(app_, Tag::hello);
    ByteReader in(message.bytes, "layout");
    plan_.dtype = in.get<DType>();
    set_cpu_threads(in.get<int>());
    plan_.layout = Layout::parse(in.get_all<std::byte>());
    return;
  }
  ranks_.resize(app_.job.size());
  ranks_[0] = std::move(own);
  for (int i = 1; i < app_.job.size(); ++i) {
    const Message message = await_message(app_, Tag::hello);
    ranks_[message.from] = RankResources::parse(message.bytes);
  }
  if (device_.is_cuda() && app_.job.size() > 1 && run.transport != "mpi") {
    std::vector<std::string> gpus;
    for (const RankResources& rank : ranks_) gpus.push_back(cat(rank.host, " ", rank.device.pci_bus_id));
    refuse_shared_gpus(gpus);
  }
  plan_ = plan_run(model, run, ranks_);
  plan_.layout.scheduler.want_top = want_top;
  set_cpu_threads(plan_.threads[0]);
  const auto layout = plan_.layout.serialize();
  for (int r = 1; r < app_.job.size(); ++r) {
    ByteWriter out;
    out.put(plan_.dtype);
    out.put(plan_.threads[r]);
    out.put_all(layout);
    control.send(r, Tag::hello, out.take());
  }
}

void Engine::gather_loads(const LoadFigures& own) {
  if (!app_.root()) {
    ByteWriter out;
    out.put(own);
    return app_.job.control().send(0, Tag::ready, out.take());
  }
  loads_.resize(app_.job.size());
  loads_[0] = own;
  for (int i = 1; i < app_.job.size(); ++i) {
    const Message message = await_message(app_, Tag::ready);
    loads_[message.from] = ByteReader(message.bytes, "ready").get<LoadFigures>();
  }
}

void Engine::close() {
  worker_.reset();  // its streams and buffers are idle
  links_->closed();
  links_.reset();
  transport_->close(timeout_s_);
}

}  // namespace pipeinfer
