#!/usr/bin/env bash
# Install the Debian packages that the tests and `dvc repro` use: a browser, fonts, words, an OCR program, a checker of shell scripts, virtual environments, a container engine, Prometheus.
#
#     bash scripts/debian.sh
#
# As root or with sudo that asks no password it installs what is missing. Otherwise it prints the command and fails.
# Where everything is there it does nothing. No lesson needs any of these: each names what takes a missing one's place, and
# `mlops-course doctor` lists both. Only `dvc repro` needs the fonts and the words, and `make bare` podman and buildah.
set -euo pipefail

packages=(fonts-dejavu-core fonts-liberation tesseract-ocr tesseract-ocr-eng shellcheck git-lfs python3-venv)
# What the shipped recogniser's lines are made of (`dvc repro`): words, and the fonts in data/broad/fonts.txt.
# Lesson 07 takes the few in data/words_and_fonts instead.
packages+=(
    wamerican fonts-freefont-ttf fonts-croscore fonts-courier-prime fonts-anonymous-pro fonts-firacode fonts-jetbrains-mono
    fonts-league-mono fonts-inconsolata fonts-ocr-a fonts-ocr-b fonts-3270 fonts-monofur fonts-hermit fonts-monoid fonts-agave
    fonts-mononoki fonts-fantasque-sans fonts-tlwg-typewriter-ttf fonts-gnutypewriter fonts-terminus fonts-proggy fonts-unifont
    fonts-spleen fonts-ipafont-gothic fonts-b612 fonts-roboto-unhinted fonts-lato fonts-crosextra-carlito fonts-oxygen fonts-cantarell
    fonts-open-sans fonts-paratype fonts-play fonts-yanone-kaffeesatz fonts-bebas-neue xfonts-base xfonts-75dpi
)
# What the web page of Debian's Prometheus is made of: the package leaves these out of itself, and links them.
packages+=(
    libjs-bootstrap4 libjs-d3 libjs-eonasdan-bootstrap-datetimepicker libjs-jquery libjs-jquery-hotkeys libjs-moment
    libjs-moment-timezone libjs-mustache libjs-popper.js libjs-rickshaw fonts-glyphicons-halflings
)
# What the image of lesson 15 is built, run and tested with, and what `make bare` runs the lessons in.
packages+=(buildah podman runc netavark aardvark-dns iptables catatonit mmdebstrap)

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "This is not Debian or Ubuntu, so nothing is installed here. The tests use Chromium, the fonts DejaVu and Liberation, Tesseract with English, ShellCheck, podman, buildah, Prometheus and Alertmanager."
    case "$(uname -s)" in
        Darwin) echo "With Homebrew: brew install tesseract shellcheck podman prometheus alertmanager && brew install --cask chromium font-dejavu font-liberation" ;;
        MINGW* | MSYS* | CYGWIN*) echo "With Chocolatey: choco install chromium tesseract shellcheck dejavufonts. podman: winget install RedHat.Podman. Prometheus and Alertmanager: prometheus.io/download" ;;
        *) echo "Install them with your system's package manager." ;;
    esac
    exit 0
fi

# Any of these browsers will do. Ubuntu has no package chromium; there chromium-browser brings it.
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
    if grep -qi '^ID=ubuntu' /etc/os-release 2>/dev/null; then packages+=(chromium-browser); else packages+=(chromium); fi
fi

missing=()
for package in "${packages[@]}"; do
    # `dpkg -s` also succeeds for a package that was removed and left its settings behind, so ask for its state.
    state="$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)"
    [ "$state" = installed ] || missing+=("$package")
done
# The packages of Prometheus and Alertmanager would start both as services, today and after every restart of the machine.
# Lessons start them for as long as they run, so only the programs are taken.
daemons=(prometheus promtool prometheus-alertmanager amtool)
wanted=()
for program in "${daemons[@]}"; do command -v "$program" >/dev/null || wanted=(prometheus prometheus-alertmanager); done
# Debian's Prometheus reads its web page from there, and says so in itself. Upstream's has it inside.
pages=/usr/share/prometheus/web
prometheus="$(command -v prometheus || true)"
if [ -n "$prometheus" ] && ! [ -d "$pages" ] && grep --quiet "$pages" "$prometheus"; then wanted=(prometheus prometheus-alertmanager); fi

if [ "${#missing[@]}" -eq 0 ] && [ "${#wanted[@]}" -eq 0 ]; then
    echo "The Debian packages that the tests use are there."
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif command -v sudo >/dev/null && sudo --non-interactive true 2>/dev/null; then
    as_root=(sudo --non-interactive)
else
    echo "Missing: ${missing[*]} ${wanted[*]}. Installing needs root, and sudo here is absent or asks for a password. Run:" >&2
    [ "${#missing[@]}" -eq 0 ] || echo "    sudo apt-get update && sudo apt-get install --yes --no-install-recommends ${missing[*]}" >&2
    [ "${#wanted[@]}" -eq 0 ] || echo "    sudo bash scripts/debian.sh" >&2
    exit 1
fi

echo "Installing ${missing[*]} ${wanted[*]}"
"${as_root[@]}" apt-get update --quiet
if [ "${#missing[@]}" -gt 0 ]; then
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends "${missing[@]}"
fi
if [ "${#wanted[@]}" -gt 0 ]; then
    work="$(mktemp --directory)"
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && apt-get download --quiet "${wanted[@]}")
    find "$work" -name '*.deb' -exec dpkg-deb --extract {} "$work/root" \;
    for program in "${daemons[@]}"; do "${as_root[@]}" install --mode=755 "$work/root/usr/bin/$program" /usr/local/bin/; done
    # Alertmanager looks for its templates there, and nowhere else.
    "${as_root[@]}" mkdir --parents /usr/share/prometheus/alertmanager
    "${as_root[@]}" cp "$work/root/usr/share/prometheus/alertmanager/"*.tmpl /usr/share/prometheus/alertmanager/
    "${as_root[@]}" cp --recursive "$work/root$pages" /usr/share/prometheus/
fi
