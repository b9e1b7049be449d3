// Ping-pong over the links that a run would open, and one back for each, so that one clock sees both ends.
#include "pipeinfer/app/doctor_checks.h"
#include "pipeinfer/base/bytes.h"
#include "pipeinfer/base/clock.h"

namespace pipeinfer {

namespace {

constexpr size_t kSmall = 8 << 10;   // a token's hidden state, about
constexpr size_t kLarge = 16 << 20;  // a chunk of a prompt's
constexpr int kPings = 50, kLarges = 8, kWarmUp = 4;

// Below these a hop costs a pipeline more than its work (see README's performance), or the network is not the one meant.
constexpr double kSlowNcclS = 1e-3, kSlowMpiS = 50e-3, kLeastNccl = 1e9, kLeastMpi = 50e6;

class HopMeter {
 public:
  HopMeter(App& app, Transport& transport, Device device, double timeout_s)
      : app_(app),
        transport_(transport),
        timeout_s_(timeout_s),
        stream_(device),
        begin_(device),
        end_(device),
        buffer_(device, kLarge, "the measurement of links") {
    fill_async(buffer_.data(), 0, buffer_.bytes(), stream_);
  }

  /// Starts opening the links of a hop that this rank is an end of.
  void open(Channel channel, const Hop& hop) {
    Link& there = transport_.connect(channel, hop.from, hop.to);
    Link& back = transport_.connect(channel, hop.to, hop.from);
    ends_.push_back({hop, &there, &back});
  }

  /// Waits for the links, then measures: both ends together. Returns the hops that start here.
  std::vector<Hop> measure() {
    wait([&] { return transport_.connected(); }, "open");
    std::vector<Hop> mine;
    for (End& end : ends_) {
      exchange(end, kWarmUp, kLarge, false);
      exchange(end, kWarmUp, kSmall, true);
      end.hop.latency_s = exchange(end, kPings, kSmall, true) / (2 * kPings);
      end.hop.bytes_per_s = double{kLarge} * kLarges / exchange(end, kLarges, kLarge, false);
      if (end.hop.from == app_.job.rank()) mine.push_back(end.hop);
    }
    return mine;
  }

 private:
  struct End {
    Hop hop;
    Link *there, *back;
  };

  /// `n` messages there, and a small one back for each of them or for all. Returns the seconds it took.
  double exchange(End& end, int n, size_t bytes, bool answer_each) {
    const bool sender = end.hop.from == app_.job.rank();
    begin_.record(stream_);
    for (int i = 0; i < n; ++i) {
      const bool answer = answer_each || i == n - 1;
      if (sender) {
        end.there->send(buffer_.data(), bytes, stream_);
        if (answer) end.back->recv(buffer_.data(), kSmall, stream_);
      } else {
        end.there->recv(buffer_.data(), bytes, stream_);
        if (answer) end.back->send(buffer_.data(), kSmall, stream_);
      }
    }
    end_.record(stream_);
    wait([&] { return end_.ready(); }, cat("measure from rank ", end.hop.from, " to rank ", end.hop.to));
    return end_.time_s() - begin_.time_s();
  }

  template <typename Done>
  void wait(Done done, const std::string& what) {
    const double deadline_s = now_s() + timeout_s_;
    app_.watchdog.await([&] {
      transport_.check();
      if (now_s() > deadline_s)
        runtime_failure(cat("rank ", app_.job.rank(), " could not ", what, " within ", timeout_s_, " s"));
      return done();
    });
  }

  App& app_;
  Transport& transport_;
  const double timeout_s_;
  Stream stream_;
  Event begin_, end_;
  DeviceBuffer buffer_;
  std::vector<End> ends_;
};

std::string hop_text(const Hop& hop) {
  char text[64];
  std::snprintf(text, sizeof text, "%.0f us, %.2f GB/s", hop.latency_s * 1e6, hop.bytes_per_s / 1e9);
  return text;
}

}  // namespace

std::vector<Hop> measure_hops(App& app, const RunConfig& run, Device device) {
  const int n = app.job.size(), rank = app.job.rank();
  const auto transport = make_transport(transport_kind(run.transport), device, app.job, run.timeout_s);
  std::vector<Hop> hops;
  {
    LinksGuard links(app.watchdog, *transport);
    HopMeter meter(app, *transport, device, run.timeout_s);
    for (int r = 0; r < n; ++r) {
      const Hop hop{r, (r + 1) % n};
      if (rank == hop.from || rank == hop.to) meter.open(r == n - 1 ? Channel::tokens : Channel::hidden, hop);
    }
    hops = meter.measure();
    links.closed();
  }
  transport->close(run.timeout_s);
  if (!app.root()) {
    ByteWriter out;
    out.put_all(hops);
    app.job.control().send(0, Tag::finish, out.take());
    return {};
  }
  std::vector<Hop> all(n);
  for (const Hop& hop : hops) all[hop.from] = hop;
  for (int i = 1; i < n; ++i)
    for (const Hop& hop : ByteReader(await_message(app, Tag::finish).bytes, "hops").get_all<Hop>())
      all.at(hop.from) = hop;
  return all;
}

void examine_hops(const std::vector<Hop>& hops, bool nccl, Findings& findings) {
  for (const Hop& hop : hops) {
    const std::string text =
        cat(&hop == &hops.back() ? "tokens return" : "hidden states go", " from rank ", hop.from, " to rank ",
            hop.to, nccl ? " over NCCL: " : " over MPI: ", hop_text(hop));
    const bool slow =
        hop.latency_s > (nccl ? kSlowNcclS : kSlowMpiS) || hop.bytes_per_s < (nccl ? kLeastNccl : kLeastMpi);
    if (slow)
      findings.warn("links", text,
                    nccl ? "see with NCCL_DEBUG=INFO which way it takes (NCCL_SOCKET_IFNAME, NCCL_IB_HCA)"
                         : "see which network MPI takes (Open MPI: --mca btl_tcp_if_include)");
    else
      findings.ok("links", text);
  }
}

}  // namespace pipeinfer
