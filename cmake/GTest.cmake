# Defines GTest::gtest_main: an installed copy, or the one halfbyte_fetch gets.
find_package(GTest QUIET)
if(GTest_FOUND)
  return()
endif()

set(version 1.16.0)
set(gtest_ARCHIVE "")
if(NOT FETCHCONTENT_SOURCE_DIR_GTEST)
  halfbyte_fetch(gtest VERSION ${version}
    URL "https://github.com/google/googletest/releases/download/v${version}/googletest-${version}.tar.gz"
    DEBIAN trixie PACKAGE googletest FILE googletest_${version}.orig.tar.gz
    SHA256 78c676fc63881529bf97bf9d45948d905a66833fbfa5318ea2cd7478cb98f399
      2f54382b5d13d6cd0be2afc524f1e510d37f8ba78c2d439c5bea64ef37e30d01)
endif()
set(INSTALL_GTEST OFF)
set(BUILD_GMOCK OFF)
FetchContent_Declare(gtest
  URL "file://${gtest_ARCHIVE}" DOWNLOAD_EXTRACT_TIMESTAMP ON
  SYSTEM EXCLUDE_FROM_ALL)
FetchContent_MakeAvailable(gtest)
