// Some files are compiled once per instruction set, in a namespace of that name. They must not call functions of the
// standard library that are emitted out of line: the linker keeps one copy of each, so an old processor could execute
// code compiled for a new one.
#pragma once

#ifndef ART_TARGET
#define ART_TARGET portable
#endif
