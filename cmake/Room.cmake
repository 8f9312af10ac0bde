# halfbyte_room(<name> [sources...] [NEEDS rooms...]): one room of csrc/ as a library that
# sees only the rooms it needs. A room without sources is headers only.

# What a bug in a room costs less with: a check of the stack's end on return, and of the
# C library's copies where their sizes are known (asan brings its own checks, hence in
# optimized builds alone). Not for kernels: their loops stay as they were measured, and
# their arguments were checked above. The extension's link options go with it.
set(halfbyte_harden "")
if(CMAKE_CXX_COMPILER_ID MATCHES "^(GNU|Clang|AppleClang)$")
  set(halfbyte_harden -fstack-protector-strong
    "$<$<CONFIG:Release,RelWithDebInfo>:SHELL:-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2>")
endif()

set(halfbyte_no_restrict "")
# GCC 12 sees an overlap in every `"a" + std::string` (its bug 105651).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(halfbyte_no_restrict -Wno-restrict)
endif()

function(halfbyte_room name)
  cmake_parse_arguments(arg "" "" "NEEDS" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS)
    add_library(halfbyte_${name} STATIC ${arg_UNPARSED_ARGUMENTS})
    set(scope PUBLIC)
    target_compile_options(halfbyte_${name} PRIVATE -Wall -Wextra ${halfbyte_no_restrict})
    if(NOT name STREQUAL "kernels")
      target_compile_options(halfbyte_${name} PRIVATE ${halfbyte_harden})
    endif()
  else()
    add_library(halfbyte_${name} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(halfbyte_${name} ${scope} ${PROJECT_SOURCE_DIR}/csrc)
  list(TRANSFORM arg_NEEDS PREPEND halfbyte_)
  target_link_libraries(halfbyte_${name} ${scope} ${arg_NEEDS})
endfunction()
