#!/usr/bin/env bash
# A SLURM cluster of several nodes on one machine, for tests and for trying out. One munged, one slurmctld and one
# slurmd a node, listening on 127.0.0.1 only; everything they write is in one directory; no root, no systemd needed.
#
#   slurm/lab.sh up              start it, or start again those of its daemons that have died
#   eval "$(slurm/lab.sh env)"   make sbatch, srun, squeue ... of this shell talk to it
#   slurm/lab.sh status          daemons and nodes; exit status 0 only if all are up
#   slurm/lab.sh down            cancel its jobs and stop it
#
# Partition low (the default) is for jobs that may be preempted: a job in partition high takes their nodes, and they
# are requeued. Exit status 75 requeues a job as well. A requeued job waits about 6 seconds.
#
# Settings, by environment; all but LAB_DIR matter to `up` only:
#   LAB_DIR      directory of the lab, made if missing     LAB_PORT    first of LAB_NODES + 1 ports (26800)
#   LAB_NODES    number of nodes, n1 n2 ... (3)            LAB_CPUS    CPUs each node claims to have (4)
#   LAB_MEMORY   MB each node claims to have (4000)        LAB_GPUS    GPUs each node claims to have (2)
#   LAB_GRACE    GraceTime of low, seconds (10)            LAB_EXTRA   more lines for slurm.conf; the last setting wins
#
# Exit status: 0 done, 1 failed, 2 misuse, 3 programs missing.
set -euo pipefail

APT_LINE="apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
READY_SECONDS=30
DRAIN_SECONDS=10
MAX_DIR_LENGTH=75 # daemons put sockets below it, whose paths may have 107 characters

unset "${!SLURM_@}" "${!SBATCH_@}" "${!SQUEUE_@}" "${!SINFO_@}" "${!SCANCEL_@}" # meant for another cluster
PATH=$PATH:/usr/sbin:/sbin # where Debian has the daemons, not on every user's PATH
LAB=${LAB_DIR:-${TMPDIR:-/tmp}/slurm-lab-$UID}
[[ $LAB == /* ]] || LAB=$PWD/$LAB
NODES=${LAB_NODES:-3}
CPUS=${LAB_CPUS:-4}
MEMORY=${LAB_MEMORY:-4000}
GPUS=${LAB_GPUS:-2}
GRACE=${LAB_GRACE:-10}
PORT=${LAB_PORT:-26800}
export SLURM_CONF=$LAB/etc/slurm.conf

die() { # die STATUS MESSAGE
  echo "error: $2" >&2
  exit "$1"
}

check_programs() {
  local program missing=""
  for program in munged slurmctld slurmd sbatch scancel sinfo squeue; do
    command -v "$program" >/dev/null || missing+=" $program"
  done
  [[ -z $missing ]] || die 3 "not installed:$missing; on Debian or Ubuntu: $APT_LINE"
}

check_settings() {
  local name
  for name in LAB_NODES:$NODES LAB_CPUS:$CPUS LAB_MEMORY:$MEMORY LAB_PORT:$PORT; do
    [[ ${name#*:} =~ ^[1-9][0-9]{0,6}$ ]] || die 2 "${name%%:*}=${name#*:} is not a positive whole number"
  done
  for name in LAB_GPUS:$GPUS LAB_GRACE:$GRACE; do
    [[ ${name#*:} =~ ^[0-9]{1,6}$ ]] || die 2 "${name%%:*}=${name#*:} is not a whole number"
  done
  ((PORT + NODES <= 65535)) || die 2 "LAB_PORT=$PORT leaves no room for $NODES nodes below port 65536"
  [[ $LAB =~ ^[A-Za-z0-9._/+-]+$ ]] || die 2 "LAB_DIR=$LAB has characters that slurm.conf cannot hold"
  ((${#LAB} <= MAX_DIR_LENGTH)) || die 2 "LAB_DIR=$LAB is longer than $MAX_DIR_LENGTH characters, too long for sockets"
}

# The living process of a pid file. A number left behind may belong to a stranger by now: only ours name $LAB.
living() { # living PIDFILE
  local pid
  [[ -s $1 ]] && read -r pid <"$1" && grep -qsF "$LAB/etc/" "/proc/$pid/cmdline" && echo "$pid"
}

any_living() {
  local file
  for file in "$LAB"/run/*.pid; do
    living "$file" >/dev/null && return
  done
  return 1
}

make_directories() {
  mkdir -p -m 0700 "$LAB" 2>/dev/null || die 1 "cannot make $LAB; set LAB_DIR to a directory of your own"
  [[ -O $LAB ]] || die 1 "$LAB belongs to somebody else; set LAB_DIR to a directory of your own"
  [[ -e $LAB/.slurm-lab || -z $(ls -A "$LAB") ]] || die 1 "$LAB holds other things; set LAB_DIR to a new directory"
  : >"$LAB/.slurm-lab"
  chmod 0700 "$LAB" # whoever reads the munge socket may submit jobs as you
  mkdir -p "$LAB"/{etc,log,run,state,gpu}
  local k
  for ((k = 1; k <= NODES; k++)); do mkdir -p "$LAB/spool/n$k"; done
}

slurm_conf() {
  local host k
  host=$(uname -n)
  host=${host%%.*}
  cat <<EOC
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
# Without these two the daemons listen on all addresses.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# cred_expire is also the wait before a requeued job may start: 121 s unless set, 5 is the least that is accepted.
AuthInfo=socket=$LAB/run/munge.sock,cred_expire=5
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/run/slurmctld.pid
SlurmdPidFile=$LAB/run/slurmd-%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd-%n.log
# Nodes may claim more than the machine has; jobs are tracked without cgroups.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Unless a job asks for memory it would get all of a node's, and no other job would run there.
DefMemPerCPU=$((MEMORY / CPUS))
GresTypes=gpu
# Start jobs at once, not at the next round of the scheduler.
SchedulerParameters=sched_interval=1,sched_min_interval=10000,batch_sched_delay=0,bf_interval=1,bf_resolution=1
# Refuse what can never run at submission, instead of letting it wait for ever.
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
RequeueExit=75
KillWait=5
# There is no slurmdbd: finished jobs stay visible to squeue and scontrol instead.
MinJobAge=3600
MaxArraySize=1001
SlurmctldTimeout=10
SlurmdTimeout=15
ReturnToService=2
EOC
  for ((k = 1; k <= NODES; k++)); do
    echo "NodeName=n$k NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + k)) CPUs=$CPUS Boards=1 SocketsPerBoard=1" \
      "CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEMORY Gres=gpu:$GPUS State=UNKNOWN"
  done
  echo "PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE MaxTime=60 State=UP"
  echo "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP"
  [[ -z ${LAB_EXTRA:-} ]] || echo "$LAB_EXTRA"
}

# Without File= SLURM counts no GPU. Device files (root only) also give jobs CUDA_VISIBLE_DEVICES; plain files count.
gres_conf() {
  local k
  echo "AutoDetect=off"
  ((GPUS > 0)) || return 0
  for ((k = 0; k < GPUS; k++)); do
    [[ -e $LAB/gpu/gpu$k ]] || mknod "$LAB/gpu/gpu$k" c 1 3 2>/dev/null || : >"$LAB/gpu/gpu$k"
    echo "NodeName=n[1-$NODES] Name=gpu File=$LAB/gpu/gpu$k"
  done
}

tails() {
  local log
  for log in "$LAB"/log/{up,munged,slurmctld,slurmd-n1,slurmd-n2,slurmd-n3}.log; do
    [[ -s $log ]] || continue
    echo "--- $log"
    tail -n 15 "$log"
  done >&2
}

give_up() { # give_up MESSAGE
  tails
  stop_all
  die 1 "$1; the ends of its logs are above"
}

start() { # start NAME COMMAND...
  living "$LAB/run/$1.pid" >/dev/null && return
  # The daemons outlive this script: they must not hold its caller's pipes open.
  "${@:2}" </dev/null >>"$LAB/log/up.log" 2>&1 || give_up "$1 does not start"
  local deadline=$((SECONDS + READY_SECONDS))
  until living "$LAB/run/$1.pid" >/dev/null; do
    ((SECONDS < deadline)) || give_up "$1 does not start"
    sleep 0.02
  done
}

start_munge() {
  local key=$LAB/etc/munge.key
  [[ -s $key ]] || (umask 077 && head -c 1024 /dev/urandom >"$key")
  start munged munged --force --key-file="$key" --socket="$LAB/run/munge.sock" --pid-file="$LAB/run/munged.pid" \
    --log-file="$LAB/log/munged.log" --seed-file="$LAB/state/munge.seed" --num-threads=2
}

usable_nodes() {
  sinfo -h -N -p low -o %t 2>/dev/null | grep -cE '^(idle|mix|alloc|comp)$' || true
}

up() {
  local k fresh=-c deadline
  check_settings
  make_directories
  slurm_conf >"$LAB/etc/wanted.conf"
  if any_living; then
    fresh=""
    cmp -s "$LAB/etc/wanted.conf" "$SLURM_CONF" || die 1 "a lab with other settings runs in $LAB; stop it (down) first"
  else
    for ((k = 0; k <= NODES; k++)); do
      ! (: <"/dev/tcp/127.0.0.1/$((PORT + k))") 2>/dev/null || die 1 "port $((PORT + k)) is taken; set LAB_PORT"
    done
    rm -f "$LAB"/log/*.log "$LAB"/run/*.pid
  fi
  mv "$LAB/etc/wanted.conf" "$SLURM_CONF"
  gres_conf >"$LAB/etc/gres.conf"
  start_munge
  start slurmctld slurmctld -f "$SLURM_CONF" $fresh
  for ((k = 1; k <= NODES; k++)); do start "slurmd-n$k" slurmd -f "$SLURM_CONF" -N "n$k" $fresh; done
  deadline=$((SECONDS + READY_SECONDS))
  while (($(usable_nodes) < NODES)); do
    living "$LAB/run/slurmctld.pid" >/dev/null || give_up "slurmctld has died"
    ((SECONDS < deadline)) || give_up "the nodes are not idle after $READY_SECONDS s"
    sleep 0.1
  done
  echo "$NODES nodes are up in $LAB; to use them: eval \"\$(slurm/lab.sh env)\""
}

# Jobs that trap TERM are killed by SLURM after KillWait seconds.
cancel_jobs() {
  local deadline=$((SECONDS + DRAIN_SECONDS)) jobs
  living "$LAB/run/slurmctld.pid" >/dev/null || return 0
  timeout 10 scancel --user="$(id -un)" >/dev/null 2>&1 || true
  while jobs=$(timeout 5 squeue -h -o %i 2>/dev/null) && [[ -n $jobs ]] && ((SECONDS < deadline)); do sleep 0.1; done
}

# SLURM's own processes and what its jobs have started; munged is not among them. The user's shells are not ours.
traces() {
  local process
  for process in $(grep -lszxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ); do
    process=${process%/environ}
    if grep -qs '^slurm' "$process/comm" || grep -qsz '^SLURM_JOB_ID=' "$process/environ"; then echo "${process#/proc/}"; fi
  done
}

stop_all() {
  local file pid child deadline
  cancel_jobs
  deadline=$((SECONDS + 10))
  for file in "$LAB"/run/{slurmd-*,slurmctld}.pid "$LAB/run/munged.pid"; do
    ! pid=$(living "$file") || kill -TERM "$pid" 2>/dev/null || true
  done
  # Step daemons outlive their slurmd, and may keep jobs whose processes have another environment.
  for pid in $(traces); do
    grep -qsx slurmstepd "/proc/$pid/comm" || continue
    for child in $(cat "/proc/$pid/task/$pid/children" 2>/dev/null); do
      kill -KILL -- "-$child" 2>/dev/null || kill -KILL "$child" 2>/dev/null || true
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
  while { any_living || [[ -n $(traces) ]]; } && ((SECONDS < deadline)); do sleep 0.05; done
  for file in "$LAB"/run/*.pid; do
    ! pid=$(living "$file") || kill -KILL "$pid" 2>/dev/null || true
  done
  for pid in $(traces); do kill -KILL "$pid" 2>/dev/null || true; done
}

status() {
  local file pid bad=0
  [[ -s $SLURM_CONF ]] || die 1 "there is no lab in $LAB; start one: slurm/lab.sh up"
  while read -r file; do
    if pid=$(living "$LAB/run/$file.pid"); then echo "$file: process $pid"; else
      echo "$file: not running"
      bad=1
    fi
  done < <(printf 'munged\nslurmctld\n' && sed -n 's/^NodeName=\(n[0-9]*\) .*/slurmd-\1/p' "$SLURM_CONF")
  living "$LAB/run/slurmctld.pid" >/dev/null && timeout 10 sinfo || bad=1
  return $bad
}

environment() {
  [[ -s $SLURM_CONF ]] || die 1 "there is no lab in $LAB; start one: slurm/lab.sh up"
  printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
  # slurm/bin has a sacct that does without slurmdbd.
  printf 'export PATH=%q:"$PATH"\n' "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/bin"
}

case "${1:-} $#" in
  "up 1") check_programs && up ;;
  "down 1") check_programs && stop_all ;;
  "status 1") check_programs && status ;;
  "env 1") environment ;;
  *) die 2 "usage: slurm/lab.sh up|down|status|env (settings: see the head of the file)" ;;
esac
