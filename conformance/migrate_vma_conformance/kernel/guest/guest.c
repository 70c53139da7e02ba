/* SPDX-License-Identifier: MIT */
/* The guest itself: mounts, the wire, swap, modules, files, programs. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PORT		"migrate-vma"		/* the name of the virtio port */
#define LONGEST_FILE	(4UL << 20)		/* of what one answer tells */

static const char *swap = "none", *loaded = "none", *transport = "none";

/* ---- start ---- */

static void mount_at(const char *kind, const char *place)
{
	mkdir(place, 0755);
	if (mount(kind, place, kind, 0, NULL) && errno != EBUSY)
		fprintf(stderr, "agent: no %s at %s: %s\n", kind, place, strerror(errno));
}

/* The value of a parameter of the kernel's command line; empty without one. */
static const char *parameter(const char *name)
{
	static char value[256];
	struct text line = { 0 };
	char *words, *word;

	*value = 0;
	guest_read("/proc/cmdline", &line);
	line.bytes[strcspn(line.bytes, "\n")] = 0;
	words = line.bytes;
	while ((word = next_word(&words)))
		if (!strncmp(word, name, strlen(name)) && word[strlen(name)] == '=')
			snprintf(value, sizeof(value), "%s", word + strlen(name) + 1);
	free(line.bytes);
	return value;
}

/* Memory, if the kernel has it, or a disk that the host gives. */
static void start_swap(void)
{
	static const char *const disks[] = { "/dev/vda", "/dev/ram0" };
	static const unsigned int version = 1;
	size_t i;

	for (i = 0; i < sizeof(disks) / sizeof(disks[0]); i++) {
		int disk = open(disks[i], O_RDWR | O_CLOEXEC);
		unsigned int last = disk < 0 ? 0 : lseek(disk, 0, SEEK_END) / PAGE - 1;

		if (disk < 0)
			continue;
		/* The header that mkswap writes: version and last page at 1024, the magic at the end of the page. */
		if (pwrite(disk, &version, sizeof(version), 1024) > 0 && pwrite(disk, &last, sizeof(last), 1028) > 0 &&
		    pwrite(disk, "SWAPSPACE2", 10, PAGE - 10) > 0 && !fsync(disk) && !swapon(disks[i], 0))
			swap = disks[i];
		close(disk);
		if (strcmp(swap, "none"))
			return;
	}
}

/* Large pages come where one asks for them, and nothing collapses pages on its own. */
static void settle_large_pages(void)
{
	guest_write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise", false);
	guest_write("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag", "0", false);
	guest_write("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "4000000000", false);
}

void guest_start(void)
{
	if (getpid() == 1) {
		mount_at("devtmpfs", "/dev");
		mount_at("proc", "/proc");
		mount_at("sysfs", "/sys");
		mount_at("tmpfs", "/tmp");
		mount_at("debugfs", "/sys/kernel/debug");
		mount_at("tracefs", "/sys/kernel/tracing");
		settle_large_pages();
		start_swap();
		guest_module(strcmp(parameter("agent.module"), "stock") ? "mended" : "stock");
	}
	signal(SIGPIPE, SIG_IGN);
}

void guest_describe(struct text *text)
{
	struct utsname names;

	uname(&names);
	text_say(text, "release=%s\n", names.release);
	text_say(text, "cpus=%ld\n", sysconf(_SC_NPROCESSORS_ONLN));
	text_say(text, "module=%s\n", loaded);
	text_say(text, "swap=%s\n", swap);
	text_say(text, "transport=%s\n", transport);
}

/* ---- the wire ---- */

static bool named(const char *port)
{
	char path[300];
	struct text name = { 0 };
	bool same;

	snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", port);
	same = !guest_read(path, &name) && !strncmp(name.bytes, PORT, strlen(PORT));
	free(name.bytes);
	return same;
}

static int virtio_port(void)
{
	DIR *ports = opendir("/sys/class/virtio-ports");
	struct dirent *port;
	char path[300];
	int wire = -1;

	while (ports && wire < 0 && (port = readdir(ports))) {
		if (port->d_name[0] == '.' || !named(port->d_name))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", port->d_name);
		wire = open(path, O_RDWR | O_CLOEXEC);
	}
	if (ports)
		closedir(ports);
	return wire;
}

static int serial_line(void)
{
	int wire = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios settings;

	if (wire >= 0 && !tcgetattr(wire, &settings)) {
		cfmakeraw(&settings);
		cfsetspeed(&settings, B115200);
		tcsetattr(wire, TCSANOW, &settings);
	}
	return wire;
}

/* The virtio port, which the host may announce a little late; else the second serial line. Not as pid 1: a socket at 0. */
int guest_transport(void)
{
	int wire, i;

	if (getpid() != 1) {
		transport = "stdin";
		return STDIN_FILENO;
	}
	for (i = 0; i < 200; i++) {
		wire = virtio_port();
		if (wire >= 0) {
			transport = "virtio";
			return wire;
		}
		usleep(5000);
	}
	transport = "serial";
	return serial_line();
}

/* ---- files ---- */

/* Adds what the file holds, as far as it goes without waiting. */
int guest_read(const char *path, struct text *text)
{
	char part[65536];
	size_t before = text->length;
	ssize_t got;
	int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), result = 0;

	text_add(text, "", 0);
	if (file < 0)
		return -errno;
	while ((got = read(file, part, sizeof(part))) > 0) {
		text_add(text, part, got);
		if (text->length - before >= LONGEST_FILE) {
			result = -EFBIG;
			break;
		}
	}
	if (got < 0 && errno != EAGAIN)
		result = -errno;
	close(file);
	return result;
}

int guest_write(const char *path, const char *text, bool append)
{
	int file = open(path, O_WRONLY | O_CLOEXEC | (append ? O_APPEND : O_TRUNC)), result = 0;
	ssize_t length = strlen(text);

	if (file < 0)
		return -errno;
	if (length && write(file, text, length) != length)
		result = -errno;
	if (close(file) && !result)
		result = -errno;
	return result;
}

/* ---- the module ---- */

/*
 * Parameters of the module stand on the kernel's command line, with commas
 * between them: agent.parameters=spm_addr_dev0=...,spm_addr_dev1=... makes two
 * devices of coherent memory besides. devtmpfs makes the nodes.
 */
static int insert(const char *path)
{
	char parameters[256], *comma;
	int file, result;

	snprintf(parameters, sizeof(parameters), "%s", parameter("agent.parameters"));
	while ((comma = strchr(parameters, ',')))
		*comma = ' ';
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -errno;
	result = syscall(SYS_finit_module, file, parameters, 0) ? -errno : 0;
	close(file);
	return result;
}

int guest_module(const char *name)
{
	bool stock = !strcmp(name, "stock");
	int result;

	if (!stock && strcmp(name, "mended"))
		return -EINVAL;
	if (strcmp(loaded, "none") && syscall(SYS_delete_module, "test_hmm", O_NONBLOCK))
		return -errno;
	loaded = "none";
	result = insert(stock ? "/lib/test_hmm.ko" : "/lib/test_hmm-mended.ko");
	if (!result)
		loaded = stock ? "stock" : "mended";
	return result;
}

/* ---- programs ---- */

static long seconds_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec;
}

/* A line that repeats the one before it is told once: some programs fail in a loop. `before` and `line` are where these two begin. */
static void drop_repeated(struct text *output, size_t *before, size_t *line)
{
	size_t length = output->length - *line;

	if (length == *line - *before && !memcmp(output->bytes + *before, output->bytes + *line, length)) {
		output->length = *line;
		return;
	}
	*before = *line;
	*line = output->length;
}

/* Reads until the program closes its output; false if that takes too long. */
static bool gather_output(int from, long end, struct text *output)
{
	struct pollfd ready = { .fd = from, .events = POLLIN };
	size_t before = output->length, line = before;
	char part[4096];
	ssize_t got, i;

	for (;;) {
		long left = end - seconds_now();

		if (left <= 0)
			return false;
		if (poll(&ready, 1, left * 1000) <= 0)
			continue;
		got = read(from, part, sizeof(part));
		if (got <= 0)
			return true;
		for (i = 0; i < got && output->length < LONGEST_FILE; i++) {
			text_add(output, part + i, 1);
			if (part[i] == '\n')
				drop_repeated(output, &before, &line);
		}
	}
}

static void become(char **words, int output)
{
	int nothing = open("/dev/null", O_RDONLY);

	dup2(nothing, STDIN_FILENO);
	dup2(output, STDOUT_FILENO);
	dup2(output, STDERR_FILENO);
	setpgid(0, 0);
	execv(words[0], words);
	perror(words[0]);
	_exit(127);
}

void guest_execute(long seconds, char **words, struct answer *answer, struct text *output)
{
	int ends[2], status = 0;
	pid_t pid;

	blank(answer);
	if (pipe2(ends, O_CLOEXEC)) {
		answer->result = -errno;
		return;
	}
	pid = fork();
	if (!pid)
		become(words, ends[1]);
	close(ends[1]);
	if (!gather_output(ends[0], seconds_now() + seconds, output)) {
		answer->fate = HUNG;
		kill(-pid, SIGKILL);
		kill(pid, SIGKILL);
	}
	close(ends[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	answer->result = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}
