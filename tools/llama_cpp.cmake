# Of every build of llama.cpp that this project asks for (tools/compile_ahead.py, tools/build_runtime.py); CMake includes
# it after a project().

# llama.cpp's helpers for its own programs, with a web server: two fifths of the time, and no Python package loads them.
# A plain variable goes before the cache entry that llama-cpp-python forces to ON.
set(LLAMA_BUILD_COMMON OFF)

# what GCC makes of AMX ends as an illegal instruction
add_compile_options("$<$<COMPILE_LANG_AND_ID:CXX,GNU>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/gcc_amx.h\">")
