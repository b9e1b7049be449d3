#!/usr/bin/env python3
"""Checks every #include of include/ and src/ against the layer table of the design. What no rule allows is forbidden.

usage: check_layering.py [PROJECT_ROOT]      prints one line a violation, exits with 1 if there is any
"""
import re
import sys
from pathlib import Path

# Layer -> what it may include besides itself, the C++ standard library and the system's headers.
LAYERS = {
    "base": {"spdlog"},
    "config": {"base", "json"},
    "device": {"base", "cuda", "nvml"},
    "batch": {"base", "device"},
    "trace": {"base", "device", "json", "nvtx"},
    "checkpoint": {"base", "config", "json"},
    "tokenizer": {"base", "config", "sentencepiece"},
    "kernels": {"base", "device", "cuda"},
    "io": {"base", "config", "batch", "json"},
    "sched": {"base", "config", "batch"},
    "comm": {"base", "config", "device", "trace", "mpi", "nccl", "cuda"},
    "model": {"base", "config", "batch", "device", "trace", "checkpoint", "kernels", "torch"},
}
LAYERS["pipeline"] = set(LAYERS) - {"model"}
LAYERS["app"] = set(LAYERS) | {"json", "cli11"}

# Other libraries, by the spelling of their includes; the first pattern that matches names the library.
LIBRARIES = {
    "spdlog": r"(spdlog|fmt)/",
    "json": r"nlohmann/",
    "cli11": r"CLI/",
    "sentencepiece": r"sentencepiece",
    "mpi": r"mpi(-ext)?\.h$",
    "nccl": r"nccl",
    "nvml": r"nvml\.h$",
    "nvtx": r"nvtx3/",
    "torch": r"(torch|ATen|c10|caffe2)/",
    "cuda": r"(cu[A-Za-z_0-9]*\.h$|cuda|cub/|thrust/|cooperative_groups|mma\.h$|library_types\.h$)",
    "system": r"([a-z_0-9]+$|(sys|linux|arpa|netinet|net)/|[a-z]mmintrin\.h$|x86intrin\.h$"
              r"|(dirent|dlfcn|errno|fcntl|limits|poll|pthread|pwd|sched|signal|stdlib|string|time|unistd)\.h$)",
}
# Even where a layer may use it, a library that must not reach whoever includes the layer's headers.
NOT_IN_HEADERS = {"spdlog"}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)
COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*', re.DOTALL)


def target_of(file: Path, layer: str, root: Path, quote: str, name: str) -> str:
    """The layer or library that `name` belongs to; a sentence starting with "?" where it is none."""
    if name.startswith("pipeinfer/"):
        parts = name.split("/")
        if len(parts) < 3 or parts[1] not in LAYERS:
            return "?names no layer"
        return parts[1]
    if quote == '"' and (file.parent / name).is_file():
        beside = (file.parent / name).resolve().relative_to(root.resolve())
        return beside.parts[1] if beside.parts[0] == "src" else beside.parts[2]
    if quote == '"' and (root / "src" / layer / name).is_file():
        return layer
    for library, pattern in LIBRARIES.items():
        if re.match(pattern, name):
            return library
    return "?belongs to no library that the table names"


def violations(root: Path) -> list[str]:
    """One line a violation: "path:line: layer X must not include Y: <spelling>"."""
    found = []
    for base in (root / "include" / "pipeinfer", root / "src"):
        for file in sorted(p for p in base.rglob("*") if p.suffix in {".h", ".hpp", ".cuh", ".cpp", ".cu", ".inc"}):
            where = file.relative_to(root)
            layer = file.relative_to(base).parts[0]
            if layer not in LAYERS:
                found.append(f"{where}: lies in no layer of the table")
                continue
            text = file.read_text(encoding="utf-8")
            text = COMMENT.sub(lambda m: "\n" * m.group().count("\n"), text)  # keeps the line numbers
            for match in INCLUDE.finditer(text):
                quote, name = match.groups()
                line = text.count("\n", 0, match.start()) + 1
                target = target_of(file, layer, root, quote, name)
                header = base.name == "pipeinfer"
                if target.startswith("?"):
                    found.append(f"{where}:{line}: {name} {target[1:]}")
                elif target not in LAYERS[layer] | {layer, "system"}:
                    found.append(f"{where}:{line}: layer {layer} must not include {target}: {name}")
                elif header and target in NOT_IN_HEADERS:
                    found.append(f"{where}:{line}: {target} must stay out of headers: {name}")
    return found


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    found = violations(root)
    print("\n".join(found) if found else "layering: every include is allowed by the table")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
