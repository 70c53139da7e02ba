/* SPDX-License-Identifier: MIT */
/*
 * The processes. Each serves one seat of a memory that all of them share with
 * the agent, and does what it finds there; all are children of the agent, also
 * those that another process forked (CLONE_PARENT), so that it learns of every
 * death. What a process does not answer within the limit hangs.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum turn { IDLE, ASKED, ANSWERED };

struct seat {
	_Atomic int turn;		/* a futex */
	_Atomic pid_t pid;		/* 0: nobody */
	int status;			/* how the last one ended */
	bool stuck;			/* was killed and does not end */
	int count;
	bool race;
	struct command commands[MOST_TOGETHER];
	struct answer answers[MOST_TOGETHER];
};

static struct {
	_Atomic int arrived, done;	/* threads of a race */
	int together;
	struct seat seats[PROCESSES];
} *shared;

static int here;			/* the process that this one is */
static pid_t agent;			/* the parent of all of them */
long process_limit = 5000;
int arena_file;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

/* Returns at a wake-up, at a signal, or after 20 ms. */
static void sleep_while(_Atomic int *word, int value)
{
	struct timespec most = { .tv_nsec = 20 * 1000 * 1000 };

	syscall(SYS_futex, word, FUTEX_WAIT, value, &most, NULL, 0);
}

static void sleep_while_not(_Atomic int *word, int value)
{
	int found = atomic_load(word);

	if (found != value)
		sleep_while(word, found);
}

static void wake(_Atomic int *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void set_turn(struct seat *seat, enum turn turn)
{
	atomic_store(&seat->turn, turn);
	wake(&seat->turn);
}

static bool is_turn(struct seat *seat, enum turn turn)
{
	return atomic_load(&seat->turn) == (int)turn;
}

/* ---- in a process ---- */

/* A process is there when it has taken its seat: until then it is somebody's turn. */
void process_expect(int process)
{
	atomic_store(&shared->seats[process].turn, ASKED);
}

void process_await_start(int process)
{
	struct seat *seat = &shared->seats[process];

	while (!is_turn(seat, IDLE))
		sleep_while(&seat->turn, ASKED);
}

struct lane {
	pthread_t thread;
	int number;
};

/* Without an agent nobody asks or kills any more: on a real machine init would keep what is left. */
static void end_with_the_agent(void)
{
	if (getppid() != agent)
		_exit(0);
}

static void gather(_Atomic int *count)
{
	int i;

	atomic_fetch_add(count, 1);
	for (i = 0; atomic_load(count) < shared->together; i++)
		if (i % 64 == 63) {
			end_with_the_agent();
			sched_yield();
		}
}

/* Nobody ends before all are done: a fork among them must not copy a lock of the C library that is held. */
static void *race_in_lane(void *argument)
{
	struct lane *lane = argument;
	struct seat *seat = &shared->seats[here];

	operation_warm(lane->number);
	gather(&shared->arrived);
	operation_run(&seat->commands[lane->number], &seat->answers[lane->number], lane->number);
	gather(&shared->done);
	return NULL;
}

static void run_race(struct seat *seat)
{
	struct lane lanes[MOST_TOGETHER];
	int i;

	for (i = 0; i < seat->count; i++) {
		lanes[i].number = i;
		if (pthread_create(&lanes[i].thread, NULL, race_in_lane, &lanes[i]))
			_exit(1);
	}
	for (i = 0; i < seat->count; i++)
		pthread_join(lanes[i].thread, NULL);
}

void process_serve(int process)
{
	struct seat *seat = &shared->seats[process];

	here = process;
	seat->pid = getpid();
	operation_start();
	operation_warm(0);
	set_turn(seat, IDLE);
	for (;;) {
		while (!is_turn(seat, ASKED)) {
			end_with_the_agent();
			sleep_while_not(&seat->turn, ASKED);
		}
		if (seat->race)
			run_race(seat);
		else
			operation_run(&seat->commands[0], &seat->answers[0], 0);
		set_turn(seat, ANSWERED);
	}
}

/* ---- in the agent ---- */

static void on_child(int signal)
{
	(void)signal;		/* it interrupts a sleep, that is all */
}

/* Takes the dead from their seats. */
static void bury(void)
{
	int status, i;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (i = 0; i < PROCESSES; i++) {
			if (shared->seats[i].pid != pid)
				continue;
			shared->seats[i].pid = 0;
			shared->seats[i].status = status;
			shared->seats[i].stuck = false;
		}
	}
}

static bool buried_within(int process, long limit)
{
	double end = now() + limit;

	for (bury(); shared->seats[process].pid; bury()) {
		if (now() > end)
			return false;
		usleep(200);
	}
	return true;
}

bool process_lives(int process)
{
	bury();
	return shared->seats[process].pid != 0;
}

static void start_first(void)
{
	pid_t pid;

	process_expect(0);
	pid = fork();
	if (!pid)
		process_serve(0);
	shared->seats[0].pid = pid;
	while (atomic_load(&shared->seats[0].turn) != IDLE && process_lives(0))
		usleep(100);
}

void processes_start(void)
{
	struct sigaction action = { .sa_handler = on_child };

	sigaction(SIGCHLD, &action, NULL);
	agent = getpid();
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	arena_file = memfd_create("arena", MFD_CLOEXEC);
	if (shared == MAP_FAILED || arena_file < 0) {
		perror("agent: no memory to share");
		_exit(1);
	}
	processes_reset();
}

int processes_reset(void)
{
	int i;

	for (i = 0; i < PROCESSES; i++)
		if (process_lives(i))
			kill(shared->seats[i].pid, SIGKILL);
	for (i = 0; i < PROCESSES; i++)
		if (!buried_within(i, process_limit))
			return -ETIMEDOUT;
	if (ftruncate(arena_file, 0) || ftruncate(arena_file, ARENA_PAGES * PAGE))
		return -errno;
	start_first();
	return 0;
}

/* ---- asking ---- */

/* The stacks of the process's threads in the kernel. */
static void describe_stack(int process, struct text *why)
{
	static const char *const files[] = { "wchan", "stack", "syscall" };
	char path[64];
	size_t i;

	for (i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", shared->seats[process].pid, files[i]);
		text_say(why, "process %d, %s:\n", process, files[i]);
		guest_read(path, why);
		text_say(why, "\n");
	}
}

static void tell_all(struct seat *seat, enum fate fate)
{
	int i;

	for (i = 0; i < seat->count; i++) {
		blank(&seat->answers[i]);
		seat->answers[i].fate = fate;
		if (fate == GONE)
			seat->answers[i].signal = WIFSIGNALED(seat->status) ? WTERMSIG(seat->status) : 0;
	}
}

/* It hangs: its answers are told for it, and it is killed, which may take some time. */
static void give_up(int process, struct text *why)
{
	struct seat *seat = &shared->seats[process];

	describe_stack(process, why);
	kill(seat->pid, SIGKILL);
	seat->stuck = !buried_within(process, 1000);
	tell_all(seat, HUNG);
}

static void await(int process, double end, struct text *why)
{
	struct seat *seat = &shared->seats[process];
	bool meant = !strcmp(seat->commands[0].verb->name, "exit");

	while (!is_turn(seat, ANSWERED)) {
		bury();
		if (!seat->pid) {
			tell_all(seat, meant ? DONE : GONE);
			return;
		}
		if (now() > end) {
			give_up(process, why);
			return;
		}
		sleep_while(&seat->turn, ASKED);
	}
	atomic_store(&seat->turn, IDLE);
}

void processes_run(struct command *commands, struct answer *answers, int count, bool race, struct text *why)
{
	double end = now() + process_limit;
	int i, lane[PROCESSES] = { 0 };

	shared->arrived = shared->done = 0;
	shared->together = count;
	for (i = 0; i < count; i++) {
		struct seat *seat = &shared->seats[commands[i].number[0]];

		seat->commands[lane[commands[i].number[0]]++] = commands[i];
	}
	for (i = 0; i < PROCESSES; i++) {
		shared->seats[i].count = lane[i];
		shared->seats[i].race = race;
		if (lane[i] && !shared->seats[i].stuck)
			set_turn(&shared->seats[i], ASKED);
	}
	for (i = 0; i < PROCESSES; i++) {
		if (lane[i] && shared->seats[i].stuck)
			tell_all(&shared->seats[i], HUNG);
		else if (lane[i])
			await(i, end, why);
		lane[i] = 0;
	}
	for (i = 0; i < count; i++)
		answers[i] = shared->seats[commands[i].number[0]].answers[lane[commands[i].number[0]]++];
}
