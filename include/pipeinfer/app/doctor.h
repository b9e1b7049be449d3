// What `doctor` has to say: findings, how ranks send them to rank 0, and how they are shown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <vector>

namespace pipeinfer {

enum class Verdict : uint8_t { ok, warn, fail };

/// "OK", "WARN" or "FAIL".
const char* verdict_name(Verdict verdict);

struct Finding {
  Verdict verdict = Verdict::ok;
  std::string check;       ///< what was looked at, one word: "tokenizer"
  std::string text;        ///< what was found
  std::string advice;      ///< what to do about it; empty where nothing is, or where the text says it
  std::vector<int> ranks;  ///< whom it is about, ascending; empty: the job
  bool operator==(const Finding&) const = default;
};

class Findings {
 public:
  void ok(const std::string& check, const std::string& text);
  void warn(const std::string& check, const std::string& text, const std::string& advice);
  void fail(const std::string& check, const std::string& text, const std::string& advice);

  /// OK, since nobody asked: "not checked: --model is not given".
  void not_given(const std::string& check, const std::string& option);

  /// Takes a step of a check. What it throws is a FAIL, and the other checks go on. False then.
  template <typename Step>
  bool attempt(const std::string& check, const std::string& advice, const Step& step) {
    try {
      step();
      return true;
    } catch (const std::exception& e) {
      fail(check, e.what(), advice);
      return false;
    }
  }

  /// Adds what a rank found: to the findings of the ranks before it where it says the same, else behind the last
  /// finding of the same check.
  void add(int rank, const Findings& of_rank);

  const std::vector<Finding>& all() const { return findings_; }
  int count(Verdict verdict) const;

  std::vector<std::byte> serialize() const;
  static Findings parse(std::span<const std::byte> bytes);

  /// One line a finding, and one that counts them. `hosts`: of each rank of the job.
  std::string text(const std::vector<std::string>& hosts) const;
  /// The same as a JSON object: version, hosts, ok, warn, fail (how many), findings (verdict, check, text, advice,
  /// ranks).
  std::string json(const std::vector<std::string>& hosts) const;

 private:
  std::vector<Finding> findings_;
};

/// "3.2 GiB", "35.1 MiB".
std::string bytes_text(double bytes);

}  // namespace pipeinfer
