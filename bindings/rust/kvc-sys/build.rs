// SPDX-License-Identifier: MIT
//! Finds the installed libkvc by pkg-config. Crates that depend on this one find its headers in
//! DEP_KVC_INCLUDE, the test here in KVC_SYS_INCLUDE.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let found = pkg_config::Config::new().range_version("0.1".."0.2").probe("kvc");
    let library = found.unwrap_or_else(|error| {
        panic!(
            "libkvc 0.1 isn't found: install it (cmake --install build/release --prefix DIR) and \
             set PKG_CONFIG_PATH to DIR/lib/pkgconfig\n{error}"
        )
    });
    let include: Vec<_> = library.include_paths.iter().map(|p| p.display().to_string()).collect();
    let include = include.first().map_or("/usr/include", String::as_str);
    println!("cargo:include={include}");
    println!("cargo:rustc-env=KVC_SYS_INCLUDE={include}");
}
