# Included by CMake after every project() of llama-cpp-python's build (CMAKE_PROJECT_INCLUDE), for tools/compile_ahead.py:
# what Python never loads is left out, and what does not compute is compiled with less effort. ggml, which computes, is
# compiled as always. See docs/install.md for the figures.

include("${CMAKE_CURRENT_LIST_DIR}/llama_cpp.cmake")

function(jmedlite_compile_ahead)
  foreach(target llama mtmd)
    if(TARGET ${target} AND NOT MSVC)
      target_compile_options(${target} PRIVATE -O1)
    endif()
  endforeach()
  if(TARGET llama)
    # what most of its files include, read once
    target_precompile_headers(llama PRIVATE <algorithm> <array> <cassert> <cinttypes> <cmath> <cstdint> <cstring>
      <functional> <future> <map> <memory> <random> <regex> <set> <sstream> <stdexcept> <string> <thread> <unordered_map>
      <unordered_set> <vector>)
  endif()
  if(TARGET mtmd)
    set_target_properties(mtmd PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 24)
    # its helpers may not see its inner headers, which a common unit would show them
    get_target_property(folder mtmd SOURCE_DIR)
    get_target_property(sources mtmd SOURCES)
    list(FILTER sources INCLUDE REGEX "helper")
    list(TRANSFORM sources PREPEND "${folder}/")
    set_source_files_properties(${sources} TARGET_DIRECTORY mtmd PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

if(CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR)
  cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL jmedlite_compile_ahead)
endif()
