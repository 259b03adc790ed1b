# What every handler of a chaos run begins with. T: the folder of traces, in the environment of everything it starts.
# One file for each job: "start EPOCH PID BORN" of every process, "end EPOCH PID BORN" of main ones that got to their end,
# "overlap EPOCH PID BORN" for a process of another attempt that was alive at the start, "shared" and "backwards" for a lock or a
# key that somebody else had, or a lock whose token did not grow. BORN tells a process from a
# later one of the same id.
J=$T/$SURETY_JOB_ID
starts=0
look() {
  state=Z born=
  if read -r stat < /proc/$1/stat; then
    set -- ${stat##*) }
    state=$1 born=${20}
  fi
} 2> /dev/null
say() { look $$; echo "$1 $SURETY_EPOCH $$ $born" >> "$J"; }
# A process in a session of its own that ignores TERM.
child() { setsid sh -c '. "$T/lib.sh"; trap "" TERM; say start; exec sleep '"$1" & }
# What was there before: whether an earlier attempt is alive, and how many there were.
before() {
  [ -e "$J" ] || return 0
  while read -r what epoch pid at; do
    [ "$what" = start ] || continue
    starts=$((starts + 1))
    look "$pid"
    [ "$born" = "$at" ] || continue
    case $state in Z | X) ;; *) echo "overlap $SURETY_EPOCH $pid $at" >> "$J" ;; esac
  done < "$J"
}
# Nobody else has what this file stands for: the kernel frees it when the last process of an attempt is gone.
alone() {
  eval "exec $1>>\"\$T/$2\""
  flock -n "$1" || say shared
}
# Every lock of the job is its own alone, under a token that is higher than any before.
locks() {
  fd=7
  for lock in $(echo "$SURETY_LOCKS" | tr -d '{}"' | tr , ' '); do
    name=${lock%%:*} token=${lock##*:} last=
    alone $fd "lock-$name"
    fd=$((fd + 1))
    read -r last < "$T/token-$name"
    [ "$token" -gt "${last:-0}" ] || say "backwards-from-$last"
    echo "$token" > "$T/token-$name"
  done 2> /dev/null
}
