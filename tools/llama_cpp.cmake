# Of every build of llama.cpp that this project asks for (tools/compile_ahead.py, tools/build_runtime.py); CMake includes
# it after a project().

# llama.cpp's helpers for its own programs, with a web server: two fifths of the time, and no Python package loads them.
# A plain variable goes before the cache entry that llama-cpp-python forces to ON.
set(LLAMA_BUILD_COMMON OFF)

# What GCC makes of AMX ends as an illegal instruction. libllama computes nothing itself, and with another header before
# them its precompiled ones would not be taken (compile_ahead.cmake).
add_compile_options(
  "$<$<AND:$<COMPILE_LANG_AND_ID:CXX,GNU>,$<NOT:$<STREQUAL:$<TARGET_PROPERTY:NAME>,llama>>>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/gcc_amx.h\">"
)
