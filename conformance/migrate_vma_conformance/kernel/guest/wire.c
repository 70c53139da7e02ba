/* SPDX-License-Identifier: MIT */
/* Lines: read, taken apart, written. */
#include "agent.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- texts that grow ---- */

void text_add(struct text *text, const char *bytes, size_t length)
{
	if (text->length + length + 1 > text->room) {
		text->room = (text->length + length + 1) * 2;
		text->bytes = realloc(text->bytes, text->room);
		if (!text->bytes)
			abort();
	}
	if (length)
		memcpy(text->bytes + text->length, bytes, length);
	text->length += length;
	text->bytes[text->length] = 0;
}

void text_say(struct text *text, const char *format, ...)
{
	char line[512];
	va_list values;
	int length;

	va_start(values, format);
	length = vsnprintf(line, sizeof(line), format, values);
	va_end(values);
	if (length >= (int)sizeof(line))
		length = sizeof(line) - 1;
	text_add(text, line, length);
}

/* An empty text is a lone %, for a word is never empty. */
void text_quote(struct text *text, const char *bytes, size_t length)
{
	size_t i;

	if (!length)
		text_add(text, "%", 1);
	for (i = 0; i < length; i++) {
		unsigned char c = bytes[i];

		if (c > ' ' && c < 127 && c != '%' && c != ';')
			text_add(text, (char *)&c, 1);
		else
			text_say(text, "%%%02X", c);
	}
}

void text_clear(struct text *text)
{
	text->length = 0;
	text_add(text, "", 0);
}

/* ---- answers ---- */

void blank(struct answer *answer)
{
	answer->result = 0;
	answer->fate = DONE;
	answer->value = answer->signal = answer->code = UNTOLD;
	answer->cpages = answer->faults = answer->minor = answer->took = UNTOLD;
	answer->data_length = UNTOLD;
}

static void tell(struct text *text, const char *name, long value)
{
	if (value != UNTOLD)
		text_say(text, " %s=%ld", name, value);
}

void text_answer(struct text *text, const struct answer *answer)
{
	static const char *const fates[] = { "", " hung", " gone", " refused" };
	long i;

	text_say(text, "%ld%s", answer->result, fates[answer->fate]);
	tell(text, "value", answer->value);
	tell(text, "signal", answer->signal);
	tell(text, "code", answer->code);
	tell(text, "cpages", answer->cpages);
	tell(text, "faults", answer->faults);
	tell(text, "minor", answer->minor);
	tell(text, "took", answer->took);
	if (answer->data_length == UNTOLD)
		return;
	text_say(text, " data=");
	for (i = 0; i < answer->data_length; i++)
		text_say(text, "%02x", answer->data[i]);
}

/* ---- lines ---- */

#define PATIENCE 5000			/* times 2 ms that the other end may be closed */

/* The next whole line without its end, to be used before the next call; NULL at the end. */
char *next_line(int from)
{
	static struct text ahead;
	static size_t used;		/* of what was read ahead */
	char more[65536], *end, *line;
	int closed = 0;
	ssize_t got;

	text_add(&ahead, "", 0);
	while (!(end = memchr(ahead.bytes + used, '\n', ahead.length - used))) {
		if (used)
			memmove(ahead.bytes, ahead.bytes + used, ahead.length - used);
		ahead.length -= used;
		used = 0;
		got = read(from, more, sizeof(more));
		if (got > 0)
			text_add(&ahead, more, got);
		else if (got == 0 && from != STDIN_FILENO && ++closed < PATIENCE)
			usleep(2000);
		else if (got == 0 || errno != EINTR)
			return NULL;
	}
	line = ahead.bytes + used;
	*end = 0;
	used = end + 1 - ahead.bytes;
	return line;
}

char *next_word(char **rest)
{
	return strsep(rest, " ");
}

bool unquote(char *word)
{
	char *to = word, *from = word;

	if (!*word)
		return false;
	if (!strcmp(word, "%")) {
		*word = 0;
		return true;
	}
	while (*from) {
		if (*from != '%') {
			*to++ = *from++;
		} else if (isxdigit((unsigned char)from[1]) && isxdigit((unsigned char)from[2])) {
			char digits[3] = { from[1], from[2], 0 };

			*to++ = strtol(digits, NULL, 16);
			from += 3;
		} else {
			return false;
		}
	}
	*to = 0;
	return true;
}

bool number_of(const char *word, long *number)
{
	char *end;

	if (!isdigit((unsigned char)*word))
		return false;
	errno = 0;
	*number = strtol(word, &end, 10);
	return !*end && !errno;
}

/* ---- commands ---- */

static const char *const protections[] = { "none", "read", "write", NULL };
static const char *const kinds[] = { "private", "shared", "file", "file-private", "huge", NULL };
static const char *const advices[] = { "dontneed", "free", "cold", "pageout", "hugepage", "nohugepage",
				       "collapse", "populate-read", "populate-write", "dontfork", NULL };

static bool index_of(const char *word, const char *const *names, long *number)
{
	for (*number = 0; names[*number]; ++*number)
		if (!strcmp(word, names[*number]))
			return true;
	return false;
}

static bool below(const char *word, long most, long *number)
{
	return number_of(word, number) && *number < most;
}

static bool argument(char shape, const char *word, long *number)
{
	switch (shape) {
	case 'p':
	case 'c':
		return below(word, PROCESSES, number);
	case 'd':
		return below(word, DEVICES, number);
	case 'a':
		return below(word, ARENA_PAGES, number);
	case 'n':
		return below(word, ARENA_PAGES + 1, number);
	case 'm':
		return below(word, MOST_PAGES + 1, number);
	case 'b':
		return below(word, 256, number);
	case 'r':
		return index_of(word, protections, number);
	case 'k':
		return index_of(word, kinds, number);
	case 'h':
		return index_of(word, advices, number);
	}
	return number_of(word, number);
}

static const struct verb *verb_named(const struct verb *verb, const char *name)
{
	for (; verb->name; verb++)
		if (!strcmp(verb->name, name))
			return verb;
	return NULL;
}

const char *parse_command(char *words, struct command *command)
{
	const char *name = next_word(&words);
	const struct verb *verb = verb_named(process_verbs, name) ?: verb_named(device_verbs, name);
	int i;

	if (!verb)
		return "no such command";
	for (i = 0; verb->shape[i]; i++) {
		char *word = next_word(&words);

		if (!word)
			return "too few arguments";
		if (!argument(verb->shape[i], word, &command->number[i]))
			return "an argument that makes no sense";
	}
	command->verb = verb;
	return words ? "too many arguments" : NULL;
}
