# Defines GTest::gtest and GTest::gtest_main: an installed copy, or a fetched one.
find_package(GTest QUIET)
if(GTest_FOUND)
  return()
endif()

set(version 1.16.0)
set(sha256 78c676fc63881529bf97bf9d45948d905a66833fbfa5318ea2cd7478cb98f399)
if(NOT FETCHCONTENT_SOURCE_DIR_GTEST)
  halfbyte_fetch(gtest VERSION ${version} SHA256 ${sha256}
    URL "https://github.com/google/googletest/archive/refs/tags/v${version}.tar.gz"
    DEBIAN trixie PACKAGE googletest FILE googletest_${version}.orig.tar.gz)
endif()
set(INSTALL_GTEST OFF CACHE BOOL "")
FetchContent_Declare(gtest
  URL "file://${gtest_ARCHIVE}" URL_HASH SHA256=${sha256} DOWNLOAD_EXTRACT_TIMESTAMP ON
  SYSTEM EXCLUDE_FROM_ALL)
FetchContent_MakeAvailable(gtest)
