# Defines hwy::hwy (Highway >= 1.2): an installed copy, or the one halfbyte_fetch gets.
# Elsewhere, or offline: -DFETCHCONTENT_SOURCE_DIR_HIGHWAY=<unpacked source>, or
# -DCMAKE_PREFIX_PATH=<install prefix>. For pip: pip install . -C cmake.define.NAME=VALUE

# Of a project that has Highway already and takes halfbyte in: one copy is enough.
if(TARGET hwy AND NOT TARGET hwy::hwy)
  add_library(hwy::hwy ALIAS hwy)
endif()
if(TARGET hwy::hwy)
  message(STATUS "Highway: the target of this project")
  return()
endif()

find_package(hwy 1.2 CONFIG QUIET)
if(hwy_FOUND)
  message(STATUS "Highway ${hwy_VERSION}: installed copy, ${hwy_DIR}")
  return()
endif()

# A function, so that its options are Highway's alone and in nobody's cache.
function(halfbyte_highway)
  set(version 1.2.0)
  set(sha256 7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343)
  set(highway_ARCHIVE "")
  if(NOT FETCHCONTENT_SOURCE_DIR_HIGHWAY)
    halfbyte_fetch(highway VERSION ${version} SHA256 ${sha256}
      URL "https://github.com/google/highway/archive/refs/tags/${version}.tar.gz"
      DEBIAN trixie PACKAGE highway FILE highway_${version}.orig.tar.gz)
  endif()

  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)  # these win over its option()
  set(CMAKE_POLICY_DEFAULT_CMP0126 NEW)  # and over its set(... CACHE)
  set(HWY_ENABLE_CONTRIB OFF)
  set(HWY_ENABLE_EXAMPLES OFF)
  set(HWY_ENABLE_INSTALL OFF)
  set(HWY_ENABLE_TESTS OFF)
  set(HWY_FORCE_STATIC_LIBS ON)
  set(BUILD_TESTING OFF)
  FetchContent_Declare(highway
    URL "file://${highway_ARCHIVE}" URL_HASH SHA256=${sha256} DOWNLOAD_EXTRACT_TIMESTAMP ON
    SYSTEM EXCLUDE_FROM_ALL)  # or Highway's test library is built too
  FetchContent_MakeAvailable(highway)
  if(NOT TARGET hwy::hwy)
    add_library(hwy::hwy ALIAS hwy)
  endif()
  message(STATUS "Highway: built from ${highway_SOURCE_DIR}")
endfunction()
halfbyte_highway()
