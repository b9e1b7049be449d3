// The names of a run's files.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pipeinfer {

/// The rank in "<prefix><rank><suffix>", or nothing where `name` is not of this form.
std::optional<int> rank_in_name(std::string_view name, std::string_view prefix, std::string_view suffix);

}  // namespace pipeinfer
