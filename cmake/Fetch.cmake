# halfbyte_fetch(<name> VERSION v URL url DEBIAN release PACKAGE source FILE name
#   SHA256 hashes…)
#
# Puts the upstream archive of a library into the build tree and names it in
# <name>_ARCHIVE. It comes from the first of: the upstream URL, Debian's source package
# of the same version. Whatever comes has one of the hashes: one where both are the same
# file, two where Debian packed it again.

# True if `file` exists with the expected content; removes it otherwise.
function(halfbyte_check_archive file hashes result)
  set(ok FALSE)
  if(EXISTS "${file}")
    file(SHA256 "${file}" hash)
    if(hash IN_LIST hashes)
      set(ok TRUE)
    else()
      file(REMOVE "${file}")
    endif()
  endif()
  set(${result} ${ok} PARENT_SCOPE)
endfunction()

# Asks apt for the source package, with its own lists and cache under `dir`: neither
# root nor any change to the system. The mirror is the one the machine is set up with.
function(halfbyte_source_from_apt dir release package tar file)
  find_program(HALFBYTE_APT_GET apt-get)
  if(NOT HALFBYTE_APT_GET)
    return()
  endif()
  execute_process(COMMAND ${HALFBYTE_APT_GET} update --print-uris
    OUTPUT_VARIABLE uris ERROR_QUIET)
  if(NOT uris MATCHES "'([^']+/debian)/?/dists/[^/']+/InRelease'")
    return()
  endif()
  file(MAKE_DIRECTORY "${dir}/lists/partial" "${dir}/cache/archives/partial")
  file(WRITE "${dir}/sources.list" "deb-src ${CMAKE_MATCH_1} ${release} main\n")
  set(apt ${HALFBYTE_APT_GET} -q
    -o Dir::State=${dir} -o Dir::State::lists=${dir}/lists
    -o Dir::State::status=/dev/null -o Dir::Cache=${dir}/cache
    -o Dir::Etc::sourcelist=${dir}/sources.list -o Dir::Etc::sourceparts=/dev/null
    -o Acquire::Languages=none -o APT::Sandbox::User=
    -o APT::Update::Post-Invoke-Success::= -o APT::Update::Post-Invoke::=)
  execute_process(COMMAND ${apt} update WORKING_DIRECTORY "${dir}"
    OUTPUT_QUIET ERROR_VARIABLE error TIMEOUT 180)
  execute_process(COMMAND ${apt} source --download-only --tar-only ${package}
    WORKING_DIRECTORY "${dir}" OUTPUT_QUIET ERROR_VARIABLE error TIMEOUT 180)
  if(EXISTS "${dir}/${tar}")
    file(RENAME "${dir}/${tar}" "${file}")
  else()
    message(STATUS "${package}: apt: ${error}")
  endif()
endfunction()

function(halfbyte_fetch name)
  cmake_parse_arguments(arg "" "VERSION;URL;DEBIAN;PACKAGE;FILE" "SHA256" ${ARGN})
  set(archive "${CMAKE_BINARY_DIR}/${name}-${arg_VERSION}.tar.gz")
  halfbyte_check_archive("${archive}" "${arg_SHA256}" ok)
  if(NOT ok)
    message(STATUS "${name}: ${arg_URL}")
    file(DOWNLOAD "${arg_URL}" "${archive}" STATUS status TIMEOUT 180 INACTIVITY_TIMEOUT 15)
    halfbyte_check_archive("${archive}" "${arg_SHA256}" ok)
  endif()
  if(NOT ok)
    message(STATUS "${name}: ${status}; trying apt")
    halfbyte_source_from_apt("${CMAKE_BINARY_DIR}/${name}-apt" ${arg_DEBIAN}
      ${arg_PACKAGE} ${arg_FILE} "${archive}")
    halfbyte_check_archive("${archive}" "${arg_SHA256}" ok)
  endif()
  if(NOT ok)
    string(TOUPPER ${name} upper)
    message(FATAL_ERROR
      "${name} ${arg_VERSION} is neither installed nor to be had from ${arg_URL} or from apt.\n"
      "Install it, or unpack its source and pass\n"
      "  -DFETCHCONTENT_SOURCE_DIR_${upper}=<dir>   "
      "(pip: -C cmake.define.FETCHCONTENT_SOURCE_DIR_${upper}=<dir>)")
  endif()
  set(${name}_ARCHIVE "${archive}" PARENT_SCOPE)
endfunction()
