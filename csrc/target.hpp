// Some files are compiled once for each instruction set. What they hold lies in a namespace of that name, and they use
// nothing of the standard library that leaves functions behind: the linker keeps one of each name, and would hand code
// for a new processor to an old one.
#pragma once

#ifndef ART_TARGET
#define ART_TARGET portable
#endif
