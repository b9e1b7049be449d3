#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/checkpoint/checkpoint.h"
#include "strict_json.h"

namespace pipeinfer {
namespace {

using nlohmann::json;

/// A plain file name: what is joined to the folder cannot lead out of it.
bool stays_in_folder(const std::string& shard) {
  return !shard.empty() && shard != "." && shard != ".." &&
         shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

}  // namespace

json parse_strict_json(const std::string& what, std::string_view text) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    switch (event) {
      case json::parse_event_t::object_start:
        keys.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        if (depth >= kMaxJsonDepth)
          usage_error(cat(what, " nests more than ", kMaxJsonDepth, " levels deep"));
        break;
      case json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case json::parse_event_t::key: {
        const auto& key = value.get_ref<const std::string&>();
        if (!keys.back().insert(key).second) usage_error(cat(what, " has the key \"", key, "\" twice"));
        break;
      }
      default:
        break;
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::parse_error& e) {
    usage_error(cat(what, " is broken JSON at byte ", e.byte, " of ", text.size()));
  } catch (const json::out_of_range&) {
    usage_error(cat(what, " holds a number that no double can hold"));
  }
}

std::map<std::string, std::string> parse_shard_index(const std::string& file, std::string_view text) {
  const json index = parse_strict_json(file, text);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty())
    usage_error(cat(file, " has no \"weight_map\" that says which shard holds which tensor"));
  std::map<std::string, std::string> weights;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string())
      usage_error(
          cat(file, ": the shard of tensor ", tensor, " is ", shard.type_name(), ", expected a file name"));
    const auto& name = shard.get_ref<const std::string&>();
    if (!stays_in_folder(name))
      usage_error(cat(file, ": the shard of tensor ", tensor, " is ", shard.dump(),
                      ", expected the name of a file in the same folder"));
    weights.emplace(tensor, name);
  }
  return weights;
}

}  // namespace pipeinfer
