// The _tile_loadconfig of some GCCs, 12.2 among them, says that it reads 8 bytes, but ldtilecfg reads 64: what llama.cpp
// wrote into the others is optimized away, and the first AMX instruction after it is illegal (GCC's bug 114098;
// llama.cpp's pull request 26954). Included before everything else by llama_cpp.cmake.
#if defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
#endif
