# Defines hwy::hwy (Highway >= 1.2): an installed copy, or the one halfbyte_fetch gets.
# Elsewhere, or offline: -DFETCHCONTENT_SOURCE_DIR_HIGHWAY=<unpacked source>, or
# -DCMAKE_PREFIX_PATH=<install prefix>. For pip: pip install . -C cmake.define.NAME=VALUE

find_package(hwy 1.2 CONFIG QUIET)
if(hwy_FOUND)
  message(STATUS "Highway ${hwy_VERSION}: installed copy, ${hwy_DIR}")
  return()
endif()

set(version 1.2.0)
set(sha256 7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343)
if(NOT FETCHCONTENT_SOURCE_DIR_HIGHWAY)
  halfbyte_fetch(highway VERSION ${version} SHA256 ${sha256}
    URL "https://github.com/google/highway/archive/refs/tags/${version}.tar.gz"
    DEBIAN trixie PACKAGE highway FILE highway_${version}.orig.tar.gz)
endif()

set(HWY_ENABLE_CONTRIB OFF CACHE BOOL "")
set(HWY_ENABLE_EXAMPLES OFF CACHE BOOL "")
set(HWY_ENABLE_INSTALL OFF CACHE BOOL "")
set(HWY_ENABLE_TESTS OFF CACHE BOOL "")
set(HWY_FORCE_STATIC_LIBS ON CACHE BOOL "")
set(BUILD_TESTING OFF)
FetchContent_Declare(highway
  URL "file://${highway_ARCHIVE}" URL_HASH SHA256=${sha256} DOWNLOAD_EXTRACT_TIMESTAMP ON
  SYSTEM EXCLUDE_FROM_ALL)  # or Highway's test library is built too
FetchContent_MakeAvailable(highway)
if(NOT TARGET hwy::hwy)
  add_library(hwy::hwy ALIAS hwy)
endif()
message(STATUS "Highway: built from ${highway_SOURCE_DIR}")
