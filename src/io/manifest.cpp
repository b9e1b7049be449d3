#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/hash.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/io/completions.h"
#include "pipeinfer/io/output_dir.h"
#include "run_files.h"

namespace pipeinfer {
namespace {

using nlohmann::json;

constexpr int kVersion = 1;  // of the file's format

std::string manifest_path(const std::string& output_dir) { return output_dir + "/manifest.json"; }

uint64_t parse_hex64(const std::string& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size())
    throw std::invalid_argument("\"" + text + "\" is no hash");
  return value;
}

Manifest read_manifest(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) usage_error(cat("cannot read ", path));
  try {
    const json object = json::parse(in);
    if (const json& version = object.at("version"); version != kVersion)
      usage_error(cat(path, " has format version ", version.dump(), ", expected ", kVersion));
    Manifest manifest;
    object.at("facts").get_to(manifest.facts);
    for (const json& hash : object.at("prompts"))
      manifest.prompts.push_back(parse_hex64(hash.get<std::string>()));
    return manifest;
  } catch (const json::exception& e) {
    usage_error(cat(path, " is no manifest: ", json_reason(e)));
  } catch (const std::invalid_argument& e) {
    usage_error(cat(path, " is no manifest: ", e.what()));
  }
}

/// What differs, each as "seed was 0 and is 1".
std::vector<std::string> differences(const Manifest& before, const Manifest& now) {
  std::vector<std::string> found;
  const auto value = [](const Manifest& manifest, const std::string& name) {
    const auto it = manifest.facts.find(name);
    return it == manifest.facts.end() ? "not recorded" : it->second;
  };
  auto names = before.facts;
  names.insert(now.facts.begin(), now.facts.end());
  for (const auto& [name, any] : names)
    if (value(before, name) != value(now, name))
      found.push_back(cat(name, " was ", value(before, name), " and is ", value(now, name)));
  const size_t shared = std::min(before.prompts.size(), now.prompts.size());
  const auto changed =
      std::mismatch(before.prompts.begin(), before.prompts.begin() + shared, now.prompts.begin());
  if (changed.first != before.prompts.begin() + shared)
    found.push_back(
        cat("prompt ", changed.first - before.prompts.begin(), " (from 0) of the prompts file has changed"));
  if (now.prompts.size() < before.prompts.size())
    found.push_back(
        cat("the prompts file had ", before.prompts.size(), " prompts and has ", now.prompts.size()));
  return found;
}

}  // namespace

void write_manifest(const std::string& output_dir, const Manifest& manifest) {
  json prompts = json::array();
  for (uint64_t hash : manifest.prompts) prompts.push_back(hex64(hash));
  const json object = {{"version", kVersion}, {"facts", manifest.facts}, {"prompts", std::move(prompts)}};
  write_file(manifest_path(output_dir), object.dump(1, ' ', false, json::error_handler_t::replace) + "\n");
}

bool check_resumable(const std::string& output_dir, const Manifest& now) {
  const std::string path = manifest_path(output_dir);
  if (!std::filesystem::exists(path)) {
    if (!read_finished(output_dir).empty())
      usage_error(cat("cannot resume in ", output_dir, ": it holds completions but no manifest.json"));
    return false;
  }
  std::string all;
  for (const std::string& one : differences(read_manifest(path), now)) all += (all.empty() ? "" : "; ") + one;
  if (!all.empty()) usage_error(cat("cannot resume in ", output_dir, ": ", all));
  return true;
}

}  // namespace pipeinfer
