/* Calls that take longer, for files with a word in their path: to be preloaded.

   SLOW_SYNC="0.3 checkpoint": every fsync and fdatasync of such a file takes 0.3 s longer; likewise
   SLOW_WRITE, SLOW_READ (at a place: pread) and SLOW_RENAME (of the new name); SLOW_LOOKUP="20": a
   look-up of a name, where it is a number of seconds alone. Each delay adds a byte to the file SLOW_LOG. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static void delay(const char *variable, const char *path) {
    const char *set = getenv(variable), *log = getenv("SLOW_LOG");
    char *word;
    double seconds;
    if (!set) return;
    seconds = strtod(set, &word);
    if (*word == ' ' && !strstr(path, word + 1)) return;
    if (log) {
        int file = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (file >= 0) {
            syscall(SYS_write, file, "x", 1);
            close(file);
        }
    }
    struct timespec wait = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    while (nanosleep(&wait, &wait) && errno == EINTR) {} /* a disk hears no signal */
}

static void delay_of(const char *variable, int file) {
    char link[64], path[4096];
    ssize_t length;
    if (!getenv(variable)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    delay(variable, path);
}

int fsync(int file) {
    REAL(int, "fsync", int);
    delay_of("SLOW_SYNC", file);
    return real(file);
}

int fdatasync(int file) {
    REAL(int, "fdatasync", int);
    delay_of("SLOW_SYNC", file);
    return real(file);
}

ssize_t write(int file, const void *content, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    delay_of("SLOW_WRITE", file);
    return real(file, content, size);
}

int rename(const char *old, const char *new) {
    REAL(int, "rename", const char *, const char *);
    delay("SLOW_RENAME", new);
    return real(old, new);
}

ssize_t pread(int file, void *content, size_t size, off_t place) {
    REAL(ssize_t, "pread", int, void *, size_t, off_t);
    delay_of("SLOW_READ", file);
    return real(file, content, size, place);
}

ssize_t pread64(int file, void *content, size_t size, off64_t place) {
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
    delay_of("SLOW_READ", file);
    return real(file, content, size, place);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    REAL(int, "getaddrinfo", const char *, const char *, const struct addrinfo *,
         struct addrinfo **);
    delay("SLOW_LOOKUP", name ? name : "");
    return real(name, service, hints, found);
}
