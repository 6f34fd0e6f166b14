# Sourced by the other scripts: finding an interpreter and making a virtual environment.

# find_python VERSION: prints the path of an interpreter of that version (e.g. 3.12), fails if there is none.
find_python() {
    local version=$1 candidate
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python \
        "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}"/cpython-"$version".*/bin/python; do
        if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# make_venv FOLDER: a virtual environment of a supported Python, unless it is there already.
make_venv() {
    local folder=$1 version python
    [ -x "$folder/bin/python" ] && return
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python3 -m venv "$folder"
        return
    fi
    for version in 3.13 3.12 3.11; do
        if python=$(find_python "$version"); then
            "$python" -m venv "$folder"
            return
        fi
    done
    echo "sandboxrt needs Python 3.11 or newer; install one, e.g. 'apt-get install python3 python3-venv'" >&2
    return 1
}
