#include <algorithm>
#include <cstdio>
#include <iterator>
#include <nlohmann/json.hpp>

#include "pipeinfer/app/doctor.h"
#include "pipeinfer/base/bytes.h"

namespace pipeinfer {

namespace {

// An exception's text may have several lines.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

std::string who(const Finding& finding, const std::vector<std::string>& hosts) {
  if (finding.ranks.empty() || finding.ranks.size() == hosts.size()) return "";
  if (finding.ranks.size() == 1) return cat("rank ", finding.ranks[0], " (", hosts[finding.ranks[0]], "): ");
  std::string text = "ranks";
  for (int rank : finding.ranks) text += cat(rank == finding.ranks[0] ? " " : ", ", rank);
  return text + ": ";
}

}  // namespace

const char* verdict_name(Verdict verdict) {
  return verdict == Verdict::ok ? "OK" : verdict == Verdict::warn ? "WARN" : "FAIL";
}

void Findings::ok(const std::string& check, const std::string& text) {
  findings_.push_back({Verdict::ok, check, one_line(text), "", {}});
}

void Findings::warn(const std::string& check, const std::string& text, const std::string& advice) {
  findings_.push_back({Verdict::warn, check, one_line(text), advice, {}});
}

void Findings::fail(const std::string& check, const std::string& text, const std::string& advice) {
  findings_.push_back({Verdict::fail, check, one_line(text), advice, {}});
}

void Findings::not_given(const std::string& check, const std::string& option) {
  ok(check, cat("not checked: ", option, " is not given"));
}

void Findings::add(int rank, const Findings& of_rank) {
  for (const Finding& found : of_rank.findings_) {
    const auto same = std::find_if(findings_.begin(), findings_.end(), [&](const Finding& other) {
      Finding mine = found;
      mine.ranks = other.ranks;
      return mine == other && !other.ranks.empty() && other.ranks.back() < rank;
    });
    if (same != findings_.end()) {
      same->ranks.push_back(rank);
      continue;
    }
    const auto last = std::find_if(findings_.rbegin(), findings_.rend(),
                                   [&](const Finding& other) { return other.check == found.check; });
    const auto added = findings_.insert(last == findings_.rend() ? findings_.end() : last.base(), found);
    added->ranks = {rank};
  }
}

int Findings::count(Verdict verdict) const {
  return static_cast<int>(std::count_if(findings_.begin(), findings_.end(),
                                        [&](const Finding& finding) { return finding.verdict == verdict; }));
}

std::vector<std::byte> Findings::serialize() const {
  ByteWriter out;
  out.put(static_cast<uint32_t>(findings_.size()));
  for (const Finding& finding : findings_) {
    out.put(finding.verdict);
    for (const std::string* text : {&finding.check, &finding.text, &finding.advice}) out.put_text(*text);
    out.put_all(finding.ranks);
  }
  return out.take();
}

Findings Findings::parse(std::span<const std::byte> bytes) {
  ByteReader in(bytes, "findings");
  Findings findings;
  for (auto n = in.get<uint32_t>(); n > 0; --n) {
    Finding& finding = findings.findings_.emplace_back();
    finding.verdict = in.get<Verdict>();
    for (std::string* text : {&finding.check, &finding.text, &finding.advice}) *text = in.get_text();
    finding.ranks = in.get_all<int>();
  }
  in.end();
  return findings;
}

std::string Findings::text(const std::vector<std::string>& hosts) const {
  std::string all;
  for (const Finding& finding : findings_) {
    char head[32];
    std::snprintf(head, sizeof head, "%-5s %-10s ", verdict_name(finding.verdict), finding.check.c_str());
    all += cat(head, who(finding, hosts), finding.text, finding.advice.empty() ? "" : " -> ", finding.advice,
               "\n");
  }
  const int fails = count(Verdict::fail);
  return all + cat(fails == 0 ? "fit to run: " : "not fit to run: ", count(Verdict::ok), " OK, ",
                   count(Verdict::warn), " WARN, ", fails, " FAIL\n");
}

std::string Findings::json(const std::vector<std::string>& hosts) const {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Finding& finding : findings_)
    list.push_back({{"verdict", verdict_name(finding.verdict)},
                    {"check", finding.check},
                    {"text", finding.text},
                    {"advice", finding.advice},
                    {"ranks", finding.ranks}});
  const nlohmann::ordered_json all = {{"version", PIPEINFER_VERSION}, {"hosts", hosts},
                                      {"ok", count(Verdict::ok)},     {"warn", count(Verdict::warn)},
                                      {"fail", count(Verdict::fail)}, {"findings", list}};
  return all.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string bytes_text(double bytes) {
  constexpr double kMiB = 1 << 20;
  char text[32];
  std::snprintf(text, sizeof text, bytes < 1024 * kMiB ? "%.1f MiB" : "%.1f GiB",
                bytes < 1024 * kMiB ? bytes / kMiB : bytes / (1024 * kMiB));
  return text;
}

}  // namespace pipeinfer
