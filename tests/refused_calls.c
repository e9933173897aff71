/* Preloaded: refuses what some file systems do not have.
 * REFUSE_LOCKS=PATH_PART   flock on a file whose path holds it: ENOLCK (Lustre without -o flock)
 * REFUSE_SYNCS=1           fsync on a folder: EINVAL (CIFS, some FUSE file systems) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int flock(int descriptor, int operation) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    char link[64], path[PATH_MAX];
    const char *refused = getenv("REFUSE_LOCKS");
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    if (refused && strstr(path, refused)) {
        errno = ENOLCK;
        return -1;
    }
    return real(descriptor, operation);
}

int fsync(int descriptor) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    struct stat is;
    if (getenv("REFUSE_SYNCS") && !fstat(descriptor, &is) && S_ISDIR(is.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    return real(descriptor);
}
