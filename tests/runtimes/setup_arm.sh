#!/bin/sh
# Builds an emulated aarch64 Python with LiteRT in a folder; nothing of the host is changed.
#
#   setup_arm.sh FOLDER PYTHON [LITERT_VERSION]      PYTHON: one of the host's, with pip
#   FOLDER/python CPU script.py ...                  CPU: a folder of FOLDER/cpus
#
# Needs apt-get and dpkg on a machine whose apt knows a mirror of Debian 12, amd64: its arm64 Python is
# 3.11, for which wheels exist. Nothing is installed, and root is not needed. With QEMU_SUITE=sid the
# emulator is that of another suite of Debian: QEMU 7.2 of Debian 12 computes SME's outer products wrongly.
set -eu
mkdir -p "$1"; D=$(cd "$1" && pwd); PY=$2; V=${3:-2.3.0}
KEY=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$D/apt/lists/partial" "$D/apt/cache/archives/partial" "$D/apt/qlists/partial" "$D/debs" \
  "$D/root" "$D/site" "$D/wheels"
: > "$D/apt/status"
conf() { # file, arch, lists
  cat > "$D/apt/$1" <<C
APT::Architecture "$2";
APT::Architectures { "$2"; };
APT::Sandbox::User "$(id -un)";
Dir::State::lists "$D/apt/$3";
Dir::State::status "$D/apt/status";
Dir::Etc::sourcelist "$D/apt/$2.list";
Dir::Etc::sourceparts "/nonexistent";
Dir::Cache "$D/apt/cache";
Acquire::Languages "none";
C
}
S=${QEMU_SUITE:-bookworm}
# the mirror of the host's own apt; asked before APT_CONFIG points elsewhere
MIRROR=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -1)}
echo "deb [signed-by=$KEY] $MIRROR bookworm main" > "$D/apt/arm64.list"
echo "deb [signed-by=$KEY] $MIRROR $S main" > "$D/apt/amd64.list"
conf arm.conf arm64 lists; conf host.conf amd64 qlists
# 1. the emulator: one static binary
P=qemu-user-static; case $S in bookworm) ;; *) P=qemu-user ;; esac
export APT_CONFIG="$D/apt/host.conf"
apt-get update -qq
(cd "$D/debs" && apt-get download -qq $P)
N=$(dpkg -c "$D"/debs/${P}_*_amd64.deb | awk '$6 ~ /qemu-aarch64(-static)?$/ {print $6}' | head -1)
dpkg --fsys-tarfile "$D"/debs/${P}_*_amd64.deb | tar -xO "$N" > "$D/qemu"; chmod +x "$D/qemu"
# 2. an arm64 Python 3.11
export APT_CONFIG="$D/apt/arm.conf"
apt-get update -qq
(cd "$D/debs" && apt-get download -qq python3.11-minimal libpython3.11-minimal libpython3.11-stdlib \
  libc6 libstdc++6 libgcc-s1 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libcrypt1 libuuid1 libssl3)
for p in "$D"/debs/*_arm64.deb; do dpkg -x "$p" "$D/root"; done
unset APT_CONFIG
# 3. LiteRT and what it needs
W=""; for t in 2_28 2_27 2_17; do W="$W --platform manylinux_${t}_aarch64"; done
# shellcheck disable=SC2086
"$PY" -m pip download -q --only-binary=:all: $W --platform manylinux2014_aarch64 --python-version 3.11 \
  --implementation cp --abi cp311 --abi abi3 --abi none -d "$D/wheels" "ai-edge-litert==$V" numpy
for w in "$D"/wheels/*.whl; do "$PY" -m zipfile -e "$w" "$D/site"; done
rm -f "$D"/site/ai_edge_litert/libLiteRtWebGpuAccelerator.so
# 4. CPUs: a QEMU_CPU, and a /proc/cpuinfo of that CPU. XNNPACK's cpuinfo crashes (SIGSEGV) on the host's,
#    which qemu 7.2 passes through, and picks microkernels by the "CPU part" in it.
cpu() {
  R="$D/cpus/$1"; mkdir -p "$R/proc"; echo "$2" > "$R/qemu_cpu"
  for d in "$D"/root/*; do ln -sfn "$d" "$R/$(basename "$d")"; done
  for k in 0 1; do printf 'processor\t: %s\nBogoMIPS\t: 100.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: %s\nCPU revision\t: 0\n\n' $k "$3"; done > "$R/proc/cpuinfo"
}
cpu cortex-a35 cortex-a35 0xd04   # NEON, mlal_lane_ld64
cpu cortex-a53 cortex-a53 0xd03   # NEON, mlal_lane_cortex_a53
cpu cortex-a72 cortex-a72 0xd08   # NEON, 2x8c8 mlal
cpu cortex-a55 cortex-a76 0xd05   # dot product, cortex_a55 assembly
cpu cortex-a76 cortex-a76 0xd0b   # dot product, ld128
cpu neoverse-n1 neoverse-n1 0xd0c # dot product
cpu i8mm max,sme=off 0xd48        # i8mm
cpu sme max 0xd48                 # SME (KleidiAI); wrong under qemu 7.2
cat > "$D/python" <<'S'
#!/bin/sh
D=$(cd "$(dirname "$0")" && pwd); C=$1; shift
QEMU_CPU=$(cat "$D/cpus/$C/qemu_cpu") PYTHONPATH="$D/site" PYTHONDONTWRITEBYTECODE=1 \
  OPENBLAS_NUM_THREADS=1 exec "$D/qemu" -L "$D/cpus/$C" "$D/root/usr/bin/python3.11" "$@"
S
chmod +x "$D/python"
"$D/python" cortex-a53 -c 'import platform, ai_edge_litert.interpreter; print("ready:", platform.machine())'
du -sh "$D"/debs "$D"/wheels "$D"/apt/lists "$D"/apt/qlists
