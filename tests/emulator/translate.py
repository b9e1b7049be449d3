#!/usr/bin/env python3
"""Turns a CUDA source into C++ for the emulator, line for line.

usage: translate.py FILE.cu OUTPUT

    kernel<<<grid, block, bytes, stream>>>(...)   emulator::launch([=](auto... args) { kernel(args...); }, grid, ...)(...)
    extern __shared__ float4 name[];              float4* name = static_cast<float4*>(emulator::dynamic_shared());
    __shared__ float a[N], b;                     static float a[N], b; emulator::shared_variables(a, b);
"""
import re
import sys
from pathlib import Path


def shared_variables(match: re.Match) -> str:
    bare = re.sub(r"<[^<>]*>|\[[^\]]*\]", "", match[1])  # without template arguments and extents
    names = [re.search(r"\w+$", part.strip())[0] for part in bare.split(",")]
    return f"static {match[1]}; emulator::shared_variables({', '.join(names)});"


def translate(text: str) -> str:
    text = re.sub(r"(\w+(?:<[^<>;]*>)?)<<<(.*?)>>>", r"emulator::launch([=](auto... args) { \1(args...); }, \2)",
                  text, flags=re.DOTALL)
    text = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = static_cast<\1*>(emulator::dynamic_shared());",
                  text)
    return re.sub(r"__shared__ ([^;]*);", shared_variables, text)


def main() -> None:
    source, output = map(Path, sys.argv[1:])
    output.write_text(f'#line 1 "{source}"\n' + translate(source.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
