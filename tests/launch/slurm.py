"""A stand-in for SLURM on this machine, under the names `sbatch`, `srun` and `scontrol`: a job runs at once, its tasks are
processes here, and one that was put back runs again. $QUEUE is a folder of what it knows.

    next         the number of the next job
    JOB.begins   a line each time that a job begins: its dependency
    JOB.again    there while it is to run again
    tasks        the processes of the step that runs
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

QUEUE = Path(os.environ['QUEUE'])


def sbatch(words: list[str]) -> int:
    file = words[-1]
    said = re.findall(r'^#SBATCH --(.*)$', Path(file).read_text(encoding='utf-8'), re.MULTILINE)
    given = {}
    for word in [shlex.split(line)[0] for line in said] + [word.removeprefix('--') for word in words[:-1]]:
        name, _, value = word.partition('=')
        given[name] = value
    assert given['signal'].startswith('TERM@') and 'requeue' in given, given
    if (QUEUE / 'refuses').exists():
        print('sbatch: error: no such partition', file=sys.stderr)
        return 3
    job = int((QUEUE / 'next').read_text(encoding='utf-8')) if (QUEUE / 'next').exists() else 7
    numbers = [None]
    if 'array' in given:
        spans = [span.split('-') for span in given['array'].partition('%')[0].split(',')]
        numbers = [number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)]
    (QUEUE / 'next').write_text(str(job + len(numbers)), encoding='utf-8')
    tasks = int(given['nodes']) * int(given['ntasks-per-node'])
    for i, number in enumerate(numbers):
        mine = {'SLURM_JOB_ID': str(job + i), 'SLURM_NTASKS': str(tasks), 'SLURM_JOB_NODELIST': 'localhost'}
        mine |= {'SLURM_NTASKS_PER_NODE': given['ntasks-per-node']}
        name = str(job)
        if number is not None:
            mine |= {'SLURM_ARRAY_JOB_ID': name, 'SLURM_ARRAY_TASK_ID': str(number)}
            name = f'{name}_{number}'
        while True:
            with open(QUEUE / f'{name}.begins', 'a', encoding='utf-8') as file_of_begins:
                print(given.get('dependency', ''), file=file_of_begins)
            log = given['output'].replace('%j', name).replace('%A_%a', name)
            with open(log, 'a', encoding='utf-8') as out:
                subprocess.run(['bash', file], stdout=out, stderr=out, env=os.environ | mine)
            if not (QUEUE / f'{name}.again').exists():
                break
            (QUEUE / f'{name}.again').unlink()
    print(job if 'parsable' in given else f'Submitted batch job {job}')
    return 0


def srun(words: list[str]) -> int:
    options = [word for word in words if word.startswith('--')][: words.index(next(w for w in words if w[:2] != '--'))]
    command, tasks = words[len(options) :], int(os.environ['SLURM_NTASKS'])
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    step = {'SLURM_STEP_NODELIST': 'localhost', 'SLURM_STEP_NUM_TASKS': str(tasks), 'JAX_COORDINATOR_PORT': port}
    step |= {'SLURM_STEP_TASKS_PER_NODE': str(tasks)}
    running = [
        subprocess.Popen(command, env=os.environ | step | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)})
        for i in range(tasks)
    ]
    (QUEUE / 'tasks').write_text(' '.join(str(task.pid) for task in running), encoding='utf-8')
    while any(task.poll() is None for task in running):
        if '--kill-on-bad-exit=0' not in options and any(task.poll() for task in running):
            for task in running:
                task.kill()
        time.sleep(0.01)
    return max(code if code >= 0 else 128 - code for code in (task.returncode for task in running))


def scontrol(words: list[str]) -> int:
    assert words[0] == 'requeue' and re.fullmatch(r'\d+(_\d+)?', words[1]), words
    (QUEUE / f'{words[1]}.again').touch()
    return 0


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit({'sbatch': sbatch, 'srun': srun, 'scontrol': scontrol}[Path(sys.argv[0]).name](sys.argv[1:]))
