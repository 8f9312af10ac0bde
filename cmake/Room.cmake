# halfbyte_room(<name> [sources...] [NEEDS rooms...]): one room of csrc/ as a library that
# sees only the rooms it needs. A room without sources is headers only.

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
  else()
    add_library(halfbyte_${name} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(halfbyte_${name} ${scope} ${PROJECT_SOURCE_DIR}/csrc)
  list(TRANSFORM arg_NEEDS PREPEND halfbyte_)
  target_link_libraries(halfbyte_${name} ${scope} ${arg_NEEDS})
endfunction()
