# SPDX-License-Identifier: MIT
#
# kvc_add_policy(NAME SOURCE...)
#
# Builds the policy NAME as policies/NAME.so in the build directory; the target is kvc_policy_NAME.
# Point KVC_POLICY_PATH at that directory, or give the file's path as the policy, to use it. A
# policy sees <kvc/policy.h> and exports kvc_policy_entry() alone; it doesn't link libkvc, and a
# symbol that nobody defines is an error when it is linked, not when it is loaded.
function(kvc_add_policy name)
    set(target kvc_policy_${name})
    add_library(${target} MODULE ${ARGN})
    set_target_properties(${target} PROPERTIES PREFIX "" SUFFIX ".so" OUTPUT_NAME ${name}
        C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/policies)
    target_link_libraries(${target} PRIVATE kvc::policy)
    # clang leaves a sanitizer's runtime to the executable
    if(NOT (KVC_SANITIZE AND CMAKE_C_COMPILER_ID STREQUAL "Clang"))
        target_link_options(${target} PRIVATE -Wl,-z,defs)
    endif()
endfunction()
